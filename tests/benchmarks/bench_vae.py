"""Encoding and decoding 512 x 512 with the full-size VAE, float32, beside both peers on the same weights.

In processor seconds, which a busy machine does not change much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffsynth.models.qwen_image_vae import QwenImageVAE as DiffSynthVAE
from diffusers import AutoencoderKLQwenImage
from timing import compare, finish, machine, report
from torch import Tensor

from qwenimage_core.models.vae import QwenImageVAE, VAEConfig, from_published

SIDE = 512
ROUNDS = 2
TARGET = 0.50


def models() -> tuple[QwenImageVAE, AutoencoderKLQwenImage, DiffSynthVAE]:
    torch.manual_seed(0)
    diffusers = AutoencoderKLQwenImage().eval()
    state = diffusers.state_dict()
    mine, diffsynth = QwenImageVAE(VAEConfig()).eval(), DiffSynthVAE().eval()
    mine.load_state_dict(from_published(state))
    diffsynth.load_state_dict(state)
    return mine, diffusers, diffsynth


def measure(what: str, mine: Callable[[], Tensor], peers: dict[str, Callable[[], Tensor]]) -> bool:
    """Against the faster of the peers."""
    found = {
        name: compare(mine, theirs, rounds=ROUNDS, warm_up=0, clock=time.process_time)
        for name, theirs in peers.items()
    }
    name = min(found, key=lambda n: found[n].theirs)
    best = found[name]
    return report(
        f"VAE {what} over {name}", best.ratio, TARGET, f"{best.ours:.2f} s over {best.theirs:.2f} s"
    )


@torch.no_grad()
def main() -> None:
    print(machine())
    mine, diffusers, diffsynth = models()
    x = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    z = torch.randn(1, 16, SIDE // 8, SIDE // 8)
    mean, std = (
        s.view(1, -1, 1, 1)
        for s in (torch.tensor(mine.config.latents_mean), torch.tensor(mine.config.latents_std))
    )
    encode = {
        "diffusers": lambda: diffusers.encode(x[:, :, None]).latent_dist.mode()[:, :, 0],
        "DiffSynth-Studio": lambda: diffsynth.encode(x) * std + mean,
    }
    decode = {
        "diffusers": lambda: diffusers.decode((z * std + mean)[:, :, None]).sample[:, :, 0],
        "DiffSynth-Studio": lambda: diffsynth.decode(z).clamp(-1, 1),
    }
    for theirs in encode.values():
        torch.testing.assert_close(mine.encode(x) * std + mean, theirs(), atol=1e-4, rtol=0)
    for theirs in decode.values():
        torch.testing.assert_close(mine.decode(z).clamp(-1, 1), theirs(), atol=1e-4, rtol=0)
    finish(
        measure("encode", lambda: mine.encode(x), encode), measure("decode", lambda: mine.decode(z), decode)
    )


if __name__ == "__main__":
    main()
