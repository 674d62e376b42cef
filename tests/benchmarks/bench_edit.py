"""A step of editing with 2 references beside DiffSynth-Studio's, plain (Edit-2509) and at time zero (Edit-2511).

Everything that is the same in every step is made once a run here, outside the step. Of the last block, only the drawn
picture's tokens are computed here: that is 1 block of 60 in the published model, so the fewer blocks are measured, the
better a ratio looks. Two sizes: 64 channels, 16 blocks, pictures of 32 x 32 tokens; the published width (3072), 3
blocks, 16 x 16 tokens. Float32, 64 text tokens, equal weights. Needs some 5 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from bench_eligen import SMALL, peer_of
from diffsynth.models.qwen_image_dit import QwenImageDiT
from diffsynth.pipelines.qwen_image import model_fn_qwen_image
from timing import compare, finish, machine, report
from torch import Tensor

from qwenimage_core.latents import pack
from qwenimage_core.layout import NOISE, PROMPT, Grid, Layout, Segment
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

REFERENCES, TEXT, TIMESTEP = 2, 64, 500.0
ROUNDS = 5
TARGET = 1.0
SIZES = {
    "64 channels": (replace(SMALL, num_layers=16), 32),
    "3072 channels": (TransformerConfig(num_layers=3), 16),
}


def layout_of(side: int, zero: bool) -> Layout:
    grid = Grid(height=side, width=side)
    names = [NOISE, *(f"edit/{i}" for i in range(1, REFERENCES + 1))]
    pictures = (
        Segment(
            name=name,
            owner="benchmark",
            kind="image",
            tokens=grid.tokens,
            grid=grid,
            timestep="zero" if zero and name != NOISE else "step",
        )
        for name in names
    )
    return Layout((Segment(name=PROMPT, owner="benchmark", kind="text", tokens=TEXT), *pictures))


def ours(
    transformer: QwenImageTransformer, latents: list[Tensor], text: Tensor, zero: bool
) -> Callable[[], Tensor]:
    """A step, with what a run computes once computed already."""
    side = latents[0].shape[-1] // 2
    layout = layout_of(side, zero)
    noise, *references = (pack(z[:, None]) for z in latents)
    images = torch.cat(references, dim=1)
    once = {
        "text_BLD": transformer.embed_text(text),
        "rope": rope_tables(torch.tensor(layout.positions()), transformer.config.axes_dims_rope),
        "modulation": transformer.modulation(TIMESTEP, zero=zero),
    }
    return lambda: transformer(
        torch.cat([noise, images], dim=1),
        **once,
        noise_tokens=side * side,
        zero_rows=layout.zero_slices,
        activation="quick_gelu",
    )


def theirs(peer: QwenImageDiT, latents: list[Tensor], text: Tensor, zero: bool) -> Callable[[], Tensor]:
    pixels = 8 * latents[0].shape[-1]

    def step() -> Tensor:
        velocity = model_fn_qwen_image(
            dit=peer,
            latents=latents[0],
            timestep=torch.tensor([TIMESTEP]),
            prompt_emb=text,
            prompt_emb_mask=torch.ones(1, TEXT, dtype=torch.long),
            height=pixels,
            width=pixels,
            edit_latents=latents[1:],
            zero_cond_t=zero,
        )
        return pack(velocity[:, None])

    return step


def measure(name: str, config: TransformerConfig, side: int, zero: bool) -> bool:
    torch.manual_seed(0)
    transformer = QwenImageTransformer(replace(config, activation="quick_gelu")).eval()
    latents = [torch.randn(1, 16, 2 * side, 2 * side) for _ in range(1 + REFERENCES)]
    text = torch.randn(1, TEXT, config.joint_attention_dim)
    mine, other = ours(transformer, latents, text, zero), theirs(peer_of(transformer), latents, text, zero)
    torch.testing.assert_close(mine(), other(), atol=1e-4, rtol=0)
    found = compare(mine, other, rounds=ROUNDS)
    detail = f"{1000 * found.ours:.0f} ms over {1000 * found.theirs:.0f} ms"
    rule = ", at time zero" if zero else ""
    return report(
        f"step with {REFERENCES} references{rule}, {name}, over DiffSynth-Studio", found.ratio, TARGET, detail
    )


@torch.no_grad()
def main() -> None:
    print(machine())
    cases = [(name, *size, zero) for name, size in SIZES.items() for zero in (False, True)]
    finish(*[measure(*case) for case in cases])


if __name__ == "__main__":
    main()
