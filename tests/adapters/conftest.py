"""A transformer of the published form, two blocks deep, and what a LoRA on it needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

# Every kind of linear layer of a block, with modulation among them, and one outside the blocks.
TARGETS = (
    *(
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn.to_out.0",
        "transformer_blocks.1.attn.add_k_proj",
    ),
    *("transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.1.txt_mlp.net.2"),
    *("transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mod.1", "img_in"),
)


@pytest.fixture
def targets() -> tuple[str, ...]:
    return TARGETS


@pytest.fixture
def model() -> QwenImageTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=24,
        in_channels=8,
        out_channels=2,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImageTransformer(config).eval()


@pytest.fixture
def velocity() -> Callable[[nn.Module], Tensor]:
    """The model's answer to one fixed input; everything an adapter can touch takes part in it."""
    generator = torch.Generator().manual_seed(1)
    x_BNC, text_BLE = torch.randn(1, 6, 8, generator=generator), torch.randn(1, 3, 24, generator=generator)
    positions = torch.tensor(
        [[5 + i] * 3 for i in range(3)] + [[0, y, x] for y in range(2) for x in range(3)]
    )
    rope = rope_tables(positions, (4, 6, 6))

    @torch.no_grad()
    def run(model: nn.Module) -> Tensor:
        text_BLD, modulation = model.embed_text(text_BLE), model.modulation(500.0)
        return model(x_BNC, text_BLD, rope, modulation, noise_tokens=6)

    return run


@pytest.fixture
def pairs(model: QwenImageTransformer) -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """pairs(seed, rank) -> {path: (down, up)} for every target, of a size that moves the output visibly."""

    def make(seed: int = 0, rank: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {name: model.get_submodule(name).weight.shape for name in TARGETS}
        return {
            name: (
                torch.randn(rank, features_in, generator=generator) * 0.2,
                torch.randn(features_out, rank, generator=generator) * 0.2,
            )
            for name, (features_out, features_in) in shapes.items()
        }

    return make
