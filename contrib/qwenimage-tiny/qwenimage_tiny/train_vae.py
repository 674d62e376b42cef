"""Trains the VAE to translate between pictures and the chosen latents of `latents.py`.

The encoder learns to compute them, the decoder to draw the picture from them: two regressions, no
adversary, no KL term (the posterior's log-variance is a constant). The decoder sees latents with noise, so
that it draws clean edges from what a transformer makes; half of them come from the encoder itself. Textures
and gradients are mixed in for ordinary pictures. Data depend on the step alone, so an interrupted training
goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenimage_core.models.vae import QwenImageVAE, VAEConfig, to_published

from . import latents
from .checkpoint import load_state, save_state
from .render import render
from .scenes import sample_scene

CONFIG = VAEConfig(
    base_dim=8,
    z_dim=latents.CHANNELS,
    dim_mult=(1, 2, 4, 8),
    num_res_blocks=1,
    latents_mean=latents.MEAN,
    latents_std=latents.STD,
)
LOGVAR = -6.0
CROP = 64
BATCH = 16
MAX_NOISE = 0.25  # on normalised latents


def build_vae() -> QwenImageVAE:
    """The VAE before training: constant log-variance, unused latents cut off on both sides."""
    torch.manual_seed(0)
    vae = QwenImageVAE(CONFIG)
    weights, used = vae.state_dict(), latents.ACTIVE  # the state dict shares memory with the parameters
    weights["quant_conv.weight"][used:] = 0
    weights["quant_conv.bias"][used:] = 0
    weights["quant_conv.bias"][latents.CHANNELS :] = LOGVAR
    weights["post_quant_conv.weight"][:, used:] = 0
    return vae


def batch_of(step: int, size: int, crop: int) -> Tensor:
    """The pictures (B, 3, crop, crop) of one step, in [-1, 1]: crops of scenes, a fifth with textures."""
    rng = random.Random(f"vae-{step}")
    generator = torch.Generator().manual_seed(step)
    pictures: list[Tensor] = []
    while len(pictures) < size:
        picture = render(sample_scene(rng))
        if rng.random() < 0.2:
            picture = _textured(picture, generator)
        for _ in range(min(2, size - len(pictures))):
            y, x = rng.randint(0, 128 - crop), rng.randint(0, 128 - crop)
            pictures.append(picture[:, y : y + crop, x : x + crop])
    return torch.stack(pictures)


def _textured(picture: Tensor, generator: torch.Generator) -> Tensor:
    """The scene in random colours over a smooth texture."""
    mix = torch.randn(3, 3, generator=generator) * 0.6
    coarse = 2 ** int(torch.randint(1, 6, (), generator=generator))
    texture = torch.randn(1, 3, coarse, coarse, generator=generator) * 0.5
    smooth = F.interpolate(texture, size=picture.shape[1:], mode="bicubic", align_corners=False)[0]
    return (torch.einsum("ij,jhw->ihw", mix, picture) + smooth).clamp(-1, 1)


class VAETraining:
    """Model, optimizer and step of a training that can be left and taken up."""

    def __init__(self, folder: Path, steps: int, lr: float = 2e-3) -> None:
        self.path = folder / "vae_state.pt"
        self.steps, self.lr, self.step = steps, lr, 0
        self.vae = build_vae().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=lr, betas=(0.9, 0.99))
        state = load_state(self.path)
        if state:
            self.vae.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        state = {"model": self.vae.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        save_state(self.path, state)

    def train_step(self) -> tuple[float, float]:
        """One step; the encoder's error (in deviations of the latents) and the decoder's PSNR in dB."""
        last = self.step > 0.85 * self.steps  # whole pictures at the end: attention must see their true size
        pictures = batch_of(self.step, BATCH // 4 if last else BATCH, 128 if last else CROP)
        target = latents.normalise(latents.cells(pictures))
        encoded = self.vae.encode(pictures)
        encoder_loss = (encoded - target)[:, : latents.ACTIVE].square().mean()
        decoded = self.vae.decode(self._decoder_input(encoded.detach(), target))
        error = decoded - pictures
        decoder_loss = error.abs().mean() + 4 * error.square().mean()
        self._update(encoder_loss + decoder_loss)
        psnr = 10 * math.log10(4 / max(error.detach().square().mean().item(), 1e-9))
        return encoder_loss.item() ** 0.5, psnr

    def _decoder_input(self, encoded: Tensor, target: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(10**9 + self.step)
        count = len(target)
        z = torch.where((torch.arange(count) % 2 == 0).view(-1, 1, 1, 1), encoded, target)
        amount = torch.rand(count, 1, 1, 1, generator=generator) * MAX_NOISE
        return z + amount * torch.randn(z.shape, generator=generator)

    def _update(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / 100)
        cool = min(1.0, max(0.02, (self.steps - self.step) / (0.4 * self.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warm * cool
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._keep_cut_off()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def _keep_cut_off(self) -> None:
        """No gradient reaches what `build_vae` fixed."""
        used = latents.ACTIVE
        for parameter, index in (
            (self.vae.quant_conv.weight, slice(used, None)),
            (self.vae.quant_conv.bias, slice(used, None)),
            (self.vae.post_quant_conv.weight, (slice(None), slice(used, None))),
        ):
            if parameter.grad is not None:
                parameter.grad[index] = 0


def export(vae: QwenImageVAE, folder: Path) -> None:
    """Write `vae/` in hub layout, float16."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.half().contiguous() for name, value in to_published(vae.state_dict(), vae.config).items()
    }
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(vae.config.to_dict(), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the VAE; run again to go on.")
    parser.add_argument("folder", type=Path, help="the training folder; results go to its model/ folder")
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    training = VAETraining(arguments.folder, arguments.steps)
    started, errors = time.time(), []
    while training.step < training.steps:
        errors.append(training.train_step())
        if training.step % 100 == 0:
            encoder, psnr = (sum(values) / len(values) for values in zip(*errors, strict=True))
            print(f"vae: step {training.step}, encoder off by {encoder:.3f}, decoder {psnr:.2f} dB,"
                  f" {time.time() - started:.0f} s", flush=True)  # fmt: skip
            errors.clear()
        if training.step % 250 == 0 or training.step == training.steps:
            training.save()
            export(training.vae, arguments.folder / "model" / "vae")


if __name__ == "__main__":
    main()
