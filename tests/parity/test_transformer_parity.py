"""Our transformer against those of both peers, live, with equal random weights; positions come from our layouts.

diffusers is built at small width. DiffSynth-Studio's class fixes its width, so a small one is put together from its own
modules; its feed-forward is the quick GELU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from qwenimage_core.layout import NOISE, Grid, Layout, Segment
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_core.models.transformer_config import Activation

from .peers import diffsynth_transformer

diffusers = pytest.importorskip("diffusers")

SMALL = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=32,
    joint_attention_dim=24,
    axes_dims_rope=(4, 14, 14),
)
LAYERED = {"use_additional_t_cond": True, "use_layer3d_rope": True}
TEXT = 7


@dataclass(frozen=True)
class Case:
    """Grids of the noise frames and of the appended pictures, in tokens."""

    noise: Grid
    appended: tuple[Grid, ...] = ()
    zero: bool = False
    layered: bool = False

    @property
    def config(self) -> TransformerConfig:
        return replace(SMALL, zero_cond_t=self.zero, **(LAYERED if self.layered else {}))

    @property
    def layout(self) -> Layout:
        def segment(name: str, grid: Grid, **options: object) -> Segment:
            return Segment(name=name, owner="test", kind="image", tokens=grid.tokens, grid=grid, **options)

        options = {"timestep": "zero" if self.zero else "step", "frame": -1 if self.layered else None}
        return Layout(
            (
                Segment(name="prompt", owner="test", kind="text", tokens=TEXT),
                segment(NOISE, self.noise),
                *(segment(f"picture {i}", grid, **options) for i, grid in enumerate(self.appended)),
            ),
            rule="layer3d" if self.layered else "image_index",
        )

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """The peers' way to say the same."""
        frames = [(1, self.noise.height, self.noise.width)] * self.noise.frames
        return frames + [(1, grid.height, grid.width) for grid in self.appended]


CASES = {
    "text to image": Case(Grid(height=4, width=3)),
    "one picture": Case(Grid(height=4, width=6), (Grid(height=5, width=3),)),
    "several pictures": Case(Grid(height=4, width=3), (Grid(height=10, width=5), Grid(height=1, width=7))),
    "pictures at time zero": Case(
        Grid(height=4, width=3), (Grid(height=3, width=3), Grid(height=2, width=6)), zero=True
    ),
    "layers": Case(Grid(height=3, width=4, frames=4), (Grid(height=3, width=4),), layered=True),
    "many layers": Case(Grid(height=2, width=2, frames=9), (Grid(height=2, width=2),), layered=True),
}


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights large enough for every part to matter, small enough for outputs of size 3 or so."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "norm" not in name or "norm_out" in name:
            torch.nn.init.normal_(parameter, std=0.12)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return module.state_dict()


def ours(
    case: Case,
    state: dict[str, torch.Tensor],
    x: torch.Tensor,
    text: torch.Tensor,
    t: float,
    activation: Activation = "gelu_tanh",
) -> torch.Tensor:
    transformer = QwenImageTransformer(replace(case.config, activation=activation)).to(x.dtype).eval()
    transformer.load_state_dict(state)
    layout = case.layout
    return transformer(
        x,
        transformer.embed_text(text),
        rope_tables(torch.tensor(layout.positions()), case.config.axes_dims_rope),
        transformer.modulation(t, 0 if case.layered else None, zero=case.zero),
        noise_tokens=case.noise.tokens,
        zero_rows=layout.zero_slices,
    )


def inputs(case: Case, batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = case.layout.tokens - TEXT
    x = torch.randn(batch, tokens, 64, generator=generator)
    return x.to(dtype), torch.randn(batch, TEXT, 24, generator=generator).to(dtype)


def diffusers_velocity(
    case: Case, peer: torch.nn.Module, x: torch.Tensor, text: torch.Tensor, t: float
) -> torch.Tensor:
    timestep = torch.full((len(x),), t).to(x.dtype)
    found = peer(
        hidden_states=x,
        encoder_hidden_states=text,
        timestep=timestep / 1000,
        img_shapes=[case.shapes] * len(x),
        additional_t_cond=torch.zeros(len(x), dtype=torch.long) if case.layered else None,
        return_dict=False,
    )[0]
    return found[:, : case.noise.tokens]


def diffusers_peer(config: TransformerConfig) -> torch.nn.Module:
    names = [name for name in config.__dataclass_fields__ if name != "activation"]
    return diffusers.QwenImageTransformer2DModel(**{name: getattr(config, name) for name in names})


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_velocity_equals_diffusers(name):
    case = CASES[name]
    peer = diffusers_peer(case.config).eval()
    state = weights(peer)
    x, text = inputs(case, batch=2)
    expected = diffusers_velocity(case, peer, x, text, 731.25)
    assert 0.5 < expected.std() < 5
    torch.testing.assert_close(ours(case, state, x, text, 731.25), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_velocity_equals_diffusers_bit_for_bit_in_bfloat16(name):
    """All roundings are at the same places, the timestep's included (988.573 is 0.98828125 there)."""
    case = CASES[name]
    peer = diffusers_peer(case.config).eval().bfloat16()
    state = weights(peer)
    x, text = inputs(case, batch=1, dtype=torch.bfloat16)
    expected = diffusers_velocity(case, peer, x, text, 988.573)
    assert torch.equal(ours(case, state, x, text, 988.573), expected)


@pytest.mark.parametrize(("zero", "layered"), [(False, False), (True, False), (False, True)])
def test_full_size_names_and_shapes_equal_diffusers(zero, layered):
    config = TransformerConfig(zero_cond_t=zero, **(LAYERED if layered else {}))
    with torch.device("meta"):
        peer, transformer = diffusers_peer(config), QwenImageTransformer(config)
    shapes = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in transformer.state_dict().items()} == shapes
    assert TransformerConfig.from_shapes(shapes, zero_cond_t=zero) == config
    assert TransformerConfig.from_dict(dict(peer.config)) == config
    if not layered:
        assert (len(shapes), sum(shape.numel() for shape in shapes.values())) == (1933, 20_430_401_088)


def pictures_of(x_NC: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Packed tokens -> latents (frames, 16, h, w), as DiffSynth-Studio takes them."""
    x = x_NC.view(grid.frames, grid.height, grid.width, 16, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(grid.frames, 16, 2 * grid.height, 2 * grid.width)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_velocity_equals_diffsynth(name):
    case = CASES[name]
    pytest.importorskip("diffsynth")
    peer = diffsynth_transformer(case.config)
    from diffsynth.pipelines.qwen_image import model_fn_qwen_image

    state = weights(peer)
    x, text = inputs(case, batch=1)
    bounds = [0, case.noise.tokens]
    for grid in case.appended:
        bounds.append(bounds[-1] + grid.tokens)
    parts = [
        pictures_of(x[0, start:stop], grid)
        for start, stop, grid in zip(bounds, bounds[1:], (case.noise, *case.appended), strict=False)
    ]
    found = model_fn_qwen_image(
        dit=peer,
        latents=parts[0],
        timestep=torch.tensor([731.25]),
        prompt_emb=text,
        prompt_emb_mask=torch.ones(1, TEXT, dtype=torch.long),
        height=16 * case.noise.height,
        width=16 * case.noise.width,
        edit_latents=None if case.layered or len(parts) == 1 else parts[1:],
        layer_input_latents=parts[-1] if case.layered else None,
        layer_num=case.noise.frames - 1 if case.layered else None,
        zero_cond_t=case.zero,
    )
    velocity = ours(case, state, x, text, 731.25, "quick_gelu")
    expected = found[: case.noise.frames]
    assert 0.5 < expected.std() < 5
    torch.testing.assert_close(pictures_of(velocity[0], case.noise), expected, atol=2e-5, rtol=0)
