"""Trains the transformer with flow matching on the chosen latents. Run again to go on where it stopped, to
the bit.

x = (1 - s) * latents + s * noise; the network is asked for the velocity, noise - latents, at time 1000 s.
The latents' unused channels are zero in x and left out of the loss, and the weights that would read or
write them stay zero.

Shape legend: B examples, L text tokens, E text width, N image tokens, C packed channels.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenimage_core.layout import Grid, Layout, Segment
from qwenimage_core.models.rope import Rope, rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

from . import latents
from .checkpoint import load_state, save_state
from .muon import Muon
from .pool import CaptionEncoder, Pool, make_pool
from .sheet import loss_curve
from .text_encoder import WIDTH as TEXT_WIDTH

GRID = Grid(height=8, width=8)
USED = latents.ACTIVE * 4  # packed channels that carry something: packing is channel-major
CONFIG = TransformerConfig(
    num_layers=5,
    num_attention_heads=4,
    attention_head_dim=32,
    joint_attention_dim=TEXT_WIDTH,
    axes_dims_rope=(8, 12, 12),
)
LEVELS = 5  # the loss is logged by noise level, in this many equal parts


@dataclass(frozen=True)
class Settings:
    """What a training is; kept in its state, except for `steps`, which may be raised when going on."""

    steps: int
    batch: int = 64
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.45  # share of the steps, at the end, in which the learning rates fall to zero
    dropout: float = 0.1  # share of batches without a caption, for guidance
    pool_size: int = 16_000
    pool_passes: int = 4
    ema: float = 0.999

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(0.0, left))


def build_transformer() -> QwenImageTransformer:
    """The transformer before training: blocks start as the identity, unused channels are cut off."""
    torch.manual_seed(0)
    model = QwenImageTransformer(CONFIG)
    for name, parameter in model.named_parameters():
        if "_mod." in name or name.startswith(("norm_out.", "proj_out.")) or name.endswith(".bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        model.img_in.weight[:, USED:] = 0
    return model


def positions(text_tokens: int, grid: Grid = GRID) -> Rope:
    """Rotary tables of a caption and one picture."""
    layout = Layout(
        (
            Segment(name="prompt", owner="core", kind="text", tokens=text_tokens),
            Segment(name="noise", owner="core", kind="image", tokens=grid.tokens, grid=grid),
        )
    )
    return rope_tables(torch.tensor(layout.positions()), CONFIG.axes_dims_rope)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """(B,) levels in 0..1, spread evenly over a logit-normal that leans to noise, where shapes are decided."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return torch.sigmoid(0.4 + 1.2 * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))


class TransformerTraining:
    """Everything that changes from step to step, and how to leave and take it up."""

    def __init__(self, folder: Path, settings: Settings, workers: int = 1) -> None:
        self.path = folder / "transformer_state.pt"
        # Each worker is a thread with its share of the batch and operators of one thread: on a busy machine that
        # waits less than operators of several threads do, for it meets once a step.
        self.workers, self.executor = workers, ThreadPoolExecutor(workers)
        self.settings, self.step = settings, 0
        self.model = build_transformer()
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        matrices = [p for n, p in self.model.named_parameters() if _is_muons(n, p)]
        others = [p for n, p in self.model.named_parameters() if not _is_muons(n, p)]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=settings.muon_lr, run=self.executor.map),
            torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
        self.base_lrs = [settings.muon_lr, settings.adam_lr]
        self.data = Examples(CaptionEncoder(folder / "model"), settings)
        self._load()

    def _load(self) -> None:
        state = load_state(self.path)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        self.data.go_to(*state["place"])

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "place": self.data.place,
        }
        save_state(self.path, state)

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One update. Returns the noise levels and the losses of its examples, both (B,)."""
        generator = torch.Generator().manual_seed(self.step)
        x0_BNC, text_BLE = self.data.next(self.step)
        noise = torch.randn(x0_BNC.shape, generator=generator)
        noise[..., USED:] = 0
        s_B = noise_levels(len(x0_BNC), generator)
        shares = zip(*(values.chunk(self.workers) for values in (x0_BNC, text_BLE, noise, s_B)), strict=True)
        results = list(self.executor.map(lambda share: self._gradients(*share, count=len(s_B)), shares))
        for parameter, *parts in zip(
            self.model.parameters(), *(gradients for _, gradients in results), strict=True
        ):
            parameter.grad = None if parts[0] is None else sum(parts[1:], parts[0])
        self._update()
        return s_B, torch.cat([losses_B for losses_B, _ in results])

    def _gradients(
        self, x0_BNC: Tensor, text_BLE: Tensor, noise_BNC: Tensor, s_B: Tensor, *, count: int
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Losses of a share of a batch of `count`, and what it adds to the gradient of the batch's mean loss."""
        torch.set_num_threads(1)  # holds for the calling thread
        s = s_B.view(-1, 1, 1)
        velocity = self.model(
            (1 - s) * x0_BNC + s * noise_BNC,
            self.model.embed_text(text_BLE),
            positions(text_BLE.shape[1]),
            self.model.modulation(1000 * s_B),
            noise_tokens=x0_BNC.shape[1],
        )
        losses_B = (velocity - (noise_BNC - x0_BNC))[..., :USED].square().mean(dim=(1, 2))
        # The last block's text half reaches no output, so some parameters have no gradient.
        gradients = torch.autograd.grad(
            losses_B.sum() / count, list(self.model.parameters()), allow_unused=True
        )
        return losses_B.detach(), gradients

    def _update(self) -> None:
        rate = self.settings.rate(self.step)
        for optimizer, lr in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - keep)


def _is_muons(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("transformer_blocks.") and "_mod." not in name


class Examples:
    """The endless row of batches; its place is (pool, pass, batch)."""

    def __init__(self, encoder: CaptionEncoder, settings: Settings) -> None:
        self.encoder, self.settings = encoder, settings
        self.nothing = [encoder([text])[0] for text in ("", " ")]  # what an absent caption looks like
        self.place = (0, 0, 0)
        self.pool: Pool | None = None
        self.batches: list[list[int]] = []

    def go_to(self, pool: int, passed: int, batch: int) -> None:
        self.place, self.pool = (pool, passed, batch), None

    def next(self, step: int) -> tuple[Tensor, Tensor]:
        """Packed latents (B, N, C) and text conditions (B, L, E) of a step."""
        number, passed, at = self.place
        if self.pool is None:
            self.pool = make_pool(number, self.settings.pool_size, self.encoder)
        if not self.batches:
            self.batches = self.pool.batches(self.settings.batch, f"{number}-{passed}")
        packed_BNC, text_BLE = self.pool.take(self.batches[at])
        self._advance()
        rng = random.Random(f"dropout-{step}")
        if rng.random() < self.settings.dropout:
            text_BLE = rng.choice(self.nothing).expand(len(packed_BNC), -1, -1)
        return packed_BNC, text_BLE

    def _advance(self) -> None:
        number, passed, at = self.place
        if at + 1 < len(self.batches):
            self.place = (number, passed, at + 1)
            return
        self.batches = []
        last_pass = passed + 1 == self.settings.pool_passes
        self.place = (number + 1, 0, 0) if last_pass else (number, passed + 1, 0)
        if last_pass:
            self.pool = None


class Log:
    """Mean loss by noise level over the last steps, as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.time()
        self._clear()

    def _clear(self) -> None:
        self.sums, self.counts = torch.zeros(LEVELS), torch.zeros(LEVELS)

    def add(self, s_B: Tensor, losses_B: Tensor) -> None:
        level_B = (s_B * LEVELS).long().clamp(max=LEVELS - 1)
        self.sums.index_add_(0, level_B, losses_B)
        self.counts.index_add_(0, level_B, torch.ones_like(losses_B))

    def write(self, step: int) -> None:
        by_level = (self.sums / self.counts.clamp(min=1)).tolist()
        entry = {
            "step": step,
            "seconds": round(time.time() - self.started),
            "loss": round(float(self.sums.sum() / self.counts.sum()), 5),
            "by_level": [round(value, 4) for value in by_level],
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        self._clear()


def run(training: TransformerTraining, log: Log, save_every: int = 100, log_every: int = 50) -> None:
    """Train to the end of the settings; the state and the loss curve are written every `save_every` steps."""
    while training.step < training.settings.steps:
        log.add(*training.train_step())
        if training.step % log_every == 0:
            log.write(training.step)
        if training.step % save_every == 0 or training.step == training.settings.steps:
            training.save()
            loss_curve(log.path, log.path.with_name("transformer_loss.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the transformer; run again to go on.")
    parser.add_argument(
        "folder", type=Path, help="the training folder, with the text encoder in its model/ folder"
    )
    parser.add_argument("--steps", type=int, required=True, help="in all, those already done included")
    parser.add_argument("--cooldown", type=float, default=0.45, help="share of the steps with falling rates")
    parser.add_argument("--workers", type=int, default=2, help="threads that share a batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(steps=arguments.steps, cooldown=arguments.cooldown)
    training = TransformerTraining(arguments.folder, settings, arguments.workers)
    run(training, Log(arguments.folder / "transformer_log.jsonl"))


if __name__ == "__main__":
    main()
