"""A step with 6 EliGen entities beside DiffSynth-Studio's, which builds a dense float mask in every step.

Everything that is the same in every step is made once a run here, outside the step; in DiffSynth-Studio's step it is
inside. Two sizes: the small model that tests draw with (64 channels, 2 blocks), where the mask is a good part of a
step, and the published width (3072, 2 blocks), where the linear layers are nearly all of it. A step of ours that has no
mask at all is measured too: no exact method can be much below it. Float32, 1024 image tokens, 6 x 12 + 64 text tokens,
equal weights. Needs some 4 GB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from diffsynth.models import qwen_image_dit as dit
from diffsynth.pipelines.qwen_image import model_fn_qwen_image
from timing import compare, finish, machine, report
from torch import Tensor

from qwenimage_core.attention import attention_for
from qwenimage_core.layout import NOISE, PROMPT, Grid, Layout, Segment
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_core.values import Apart, Within

SIDE, ENTITIES, ENTITY_TEXT, PROMPT_TEXT, TIMESTEP = 32, 6, 12, 64, 500.0
ROUNDS = {"64": 21, "3072": 3}
TARGET = 0.7
SMALL = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=32,
    joint_attention_dim=64,
    axes_dims_rope=(4, 14, 14),
)
SIZES = {"64": SMALL, "3072": TransformerConfig(num_layers=2)}
GRID = Grid(height=SIDE, width=SIDE)


def areas() -> list[Tensor]:
    """Overlapping rectangles, two rows of three, as token maps."""
    maps = []
    for number in range(ENTITIES):
        row, column = divmod(number, 3)
        where_HW = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        where_HW[row * 16 : row * 16 + 18, column * 11 : column * 11 + 13] = True
        maps.append(where_HW)
    return maps


def layout_and_rules() -> tuple[Layout, list[Apart | Within]]:
    names = [f"entity {i}" for i in range(ENTITIES)]
    texts = [*((name, ENTITY_TEXT) for name in names), (PROMPT, PROMPT_TEXT)]
    segments = [Segment(name=n, owner="benchmark", kind="text", tokens=count) for n, count in texts]
    noise = Segment(name=NOISE, owner="benchmark", kind="image", tokens=GRID.tokens, grid=GRID)
    rules: list[Apart | Within] = []
    for i, (name, where) in enumerate(zip(names, areas(), strict=True)):
        rules += [Apart(name, other) for other in (*names[i + 1 :], PROMPT)] + [Within(name, NOISE, where)]
    return Layout((*segments, noise)), rules


def ours(
    transformer: QwenImageTransformer, x: Tensor, texts: list[Tensor], *, masked: bool = True
) -> Callable[[], Tensor]:
    """A step, with what a run computes once computed already; without `masked`, the same tokens and no mask at all."""
    layout, rules = layout_and_rules()
    once = {
        "text_BLD": transformer.embed_text(torch.cat(texts, dim=1)),
        "rope": rope_tables(torch.tensor(layout.positions()), transformer.config.axes_dims_rope),
        "modulation": transformer.modulation(TIMESTEP),
    }
    attend = attention_for(rules, layout, "cpu") if masked else None
    return lambda: transformer(x, **once, noise_tokens=GRID.tokens, attend=attend, activation="quick_gelu")


def theirs(peer: dit.QwenImageDiT, x: Tensor, texts: list[Tensor]) -> Callable[[], Tensor]:
    latents = x.view(SIDE, SIDE, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 16, 2 * SIDE, 2 * SIDE)
    latent_masks = torch.stack([m.repeat_interleave(2, 0).repeat_interleave(2, 1) for m in areas()])
    lengths = [torch.ones(1, text.shape[1], dtype=torch.long) for text in texts]

    def step() -> Tensor:
        velocity = model_fn_qwen_image(
            dit=peer,
            latents=latents,
            timestep=torch.tensor([TIMESTEP]),
            prompt_emb=texts[-1],
            prompt_emb_mask=lengths[-1],
            height=16 * SIDE,
            width=16 * SIDE,
            entity_prompt_emb=texts[:-1],
            entity_prompt_emb_mask=lengths[:-1],
            entity_masks=latent_masks[None, :, None].float(),
        )
        return velocity.view(16, SIDE, 2, SIDE, 2).permute(1, 3, 0, 2, 4).reshape(x.shape)

    return step


def peer_of(transformer: QwenImageTransformer) -> dit.QwenImageDiT:
    """DiffSynth-Studio's transformer of its own modules, with our weights (the same memory)."""
    config = transformer.config
    width, heads = config.width, config.num_attention_heads
    with torch.device("meta"):
        peer = dit.QwenImageDiT(num_layers=0)
        peer.time_text_embed = dit.TimestepEmbeddings(
            256, width, diffusers_compatible_format=True, scale=1000, align_dtype_to_timestep=False
        )
        peer.txt_norm = dit.RMSNorm(config.joint_attention_dim, eps=1e-6)
        peer.img_in = torch.nn.Linear(config.in_channels, width)
        peer.txt_in = torch.nn.Linear(config.joint_attention_dim, width)
        peer.transformer_blocks = torch.nn.ModuleList(
            dit.QwenImageTransformerBlock(width, heads, config.attention_head_dim)
            for _ in range(config.num_layers)
        )
        peer.norm_out = dit.AdaLayerNorm(width, single=True)
        peer.proj_out = torch.nn.Linear(width, config.in_channels)
    peer.load_state_dict(transformer.state_dict(), assign=True)
    peer.pos_embed = dit.QwenEmbedRope(theta=10000, axes_dim=list(config.axes_dims_rope), scale_rope=True)
    return peer.eval()


def measure(name: str, config: TransformerConfig) -> bool:
    torch.manual_seed(0)
    transformer = QwenImageTransformer(replace(config, activation="quick_gelu")).eval()
    x = torch.randn(1, GRID.tokens, 64)
    texts = [torch.randn(1, n, config.joint_attention_dim) for n in [ENTITY_TEXT] * ENTITIES + [PROMPT_TEXT]]
    mine, other = ours(transformer, x, texts), theirs(peer_of(transformer), x, texts)
    torch.testing.assert_close(mine(), other(), atol=1e-4, rtol=0)
    found = compare(mine, other, rounds=ROUNDS[name], clock=time.process_time)
    bare = ours(transformer, x, texts, masked=False)
    floor = compare(bare, other, rounds=ROUNDS[name], clock=time.process_time).ratio
    print(
        f"the same tokens without any mask, {name} channels, over DiffSynth-Studio's step with it: {floor:.3f}"
    )
    detail = f"{1000 * found.ours:.0f} ms over {1000 * found.theirs:.0f} ms of processor time"
    return report(
        f"step with {ENTITIES} entities, {name} channels, over DiffSynth-Studio", found.ratio, TARGET, detail
    )


@torch.no_grad()
def main() -> None:
    print(machine())
    chosen = sys.argv[1:] or list(SIZES)
    finish(*[measure(name, SIZES[name]) for name in chosen])


if __name__ == "__main__":
    main()
