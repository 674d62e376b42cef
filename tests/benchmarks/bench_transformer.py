"""One transformer step at full width (3072, 2 blocks), 1024 image and 64 text tokens, float32, beside both peers.

Ours does within the step what it does once a run otherwise (text projection, modulation), so the figure is on the safe
side. The three share one set of weights in memory. Needs some 4 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffsynth.models.qwen_image_dit import QwenImageDiT
from diffsynth.pipelines.qwen_image import model_fn_qwen_image
from diffusers import QwenImageTransformer2DModel
from timing import compare, finish, machine, report
from torch import Tensor

from qwenimage_core.layout import NOISE, Grid, Layout, Segment
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_core.models.transformer_config import Activation

BLOCKS, SIDE, TEXT, TIMESTEP = 2, 32, 64, 500.0
ROUNDS = 5
TARGET = 1.0


def ours(transformer: QwenImageTransformer, x: Tensor, text: Tensor, activation: Activation) -> Tensor:
    return transformer(
        x,
        transformer.embed_text(text),
        ROPE,
        transformer.modulation(TIMESTEP),
        noise_tokens=SIDE * SIDE,
        activation=activation,
    )


def diffusers_step(peer: QwenImageTransformer2DModel, x: Tensor, text: Tensor) -> Tensor:
    timestep = torch.tensor([TIMESTEP / 1000])
    return peer(x, text, timestep=timestep, img_shapes=[[(1, SIDE, SIDE)]], return_dict=False)[0]


def diffsynth_step(peer: QwenImageDiT, x: Tensor, text: Tensor) -> Tensor:
    """It packs and unpacks within the step, which is nothing beside the rest."""
    latents = x.view(SIDE, SIDE, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 16, 2 * SIDE, 2 * SIDE)
    found = model_fn_qwen_image(
        dit=peer,
        latents=latents,
        timestep=torch.tensor([TIMESTEP]),
        prompt_emb=text,
        prompt_emb_mask=torch.ones(1, TEXT, dtype=torch.long),
        height=16 * SIDE,
        width=16 * SIDE,
    )
    return found.view(16, SIDE, 2, SIDE, 2).permute(1, 3, 0, 2, 4).reshape(x.shape)


def measure(name: str, mine: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> bool:
    torch.testing.assert_close(mine(), theirs(), atol=1e-4, rtol=0)
    found = compare(mine, theirs, rounds=ROUNDS, warm_up=0)
    return report(
        f"transformer step over {name}", found.ratio, TARGET, f"{found.ours:.2f} s over {found.theirs:.2f} s"
    )


GRID = Grid(height=SIDE, width=SIDE)
LAYOUT = Layout(
    (
        Segment(name="prompt", owner="benchmark", kind="text", tokens=TEXT),
        Segment(name=NOISE, owner="benchmark", kind="image", tokens=GRID.tokens, grid=GRID),
    )
)
ROPE = rope_tables(torch.tensor(LAYOUT.positions()), TransformerConfig().axes_dims_rope)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    print(machine())
    transformer = QwenImageTransformer(TransformerConfig(num_layers=BLOCKS)).eval()
    with torch.device("meta"):
        hub, studio = QwenImageTransformer2DModel(num_layers=BLOCKS).eval(), QwenImageDiT(BLOCKS).eval()
    for peer in (hub, studio):
        peer.load_state_dict(transformer.state_dict(), assign=True)
        # the rotary tables are plain tensors: made anew off the meta device
        axes = list(transformer.config.axes_dims_rope)
        peer.pos_embed = type(peer.pos_embed)(theta=10000, axes_dim=axes, scale_rope=True)
    x, text = torch.randn(1, SIDE * SIDE, 64), torch.randn(1, TEXT, 3584)
    finish(
        measure(
            "diffusers",
            lambda: ours(transformer, x, text, "gelu_tanh"),
            lambda: diffusers_step(hub, x, text),
        ),
        measure(
            "DiffSynth-Studio",
            lambda: ours(transformer, x, text, "quick_gelu"),
            lambda: diffsynth_step(studio, x, text),
        ),
    )


if __name__ == "__main__":
    main()
