"""The hypernetwork: from what encoders see in a picture to a LoRA.

X width of a picture's embedding, C compressed width, R rank, I and O features of a transformer's layer, T text tokens
of width W, M their width in the middle. No biases, no activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qwenimage_core.adapters.weights import LowRank
from qwenimage_i2l.components import block_count, layer_names, residual_tokens

RANK = 4
RESIDUAL_SCALE = 0.05

Shapes = Mapping[str, tuple[int, ...]]


class Compressed(nn.Module):
    """Two layers with few features between them."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.proj_in = _linear(shapes, f"{name}.proj_in")
        self.proj_out = _linear(shapes, f"{name}.proj_out")

    def forward(self, x_1X: Tensor, residual_1C: Tensor | None) -> Tensor:
        x_1C = self.proj_in(x_1X)
        return self.proj_out(x_1C if residual_1C is None else x_1C + residual_1C)


class LayerMaker(nn.Module):
    """The LoRA of one layer."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.proj_a = Compressed(shapes, f"{name}.proj_a")
        self.proj_b = Compressed(shapes, f"{name}.proj_b")

    def forward(self, x_1X: Tensor, residual_1C: Tensor | None) -> LowRank:
        # (1, R I) -> (R, I) and (1, O R) -> (O, R)
        return LowRank(
            self.proj_a(x_1X, residual_1C).view(RANK, -1), self.proj_b(x_1X, residual_1C).view(-1, RANK)
        )


class Residual(nn.Module):
    """The text encoder's tokens, each made narrow, then all of them together compressed."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.proj_in = _linear(shapes, f"{name}.proj_in")
        self.proj_out = _linear(shapes, f"{name}.proj_out")

    def forward(self, text_1TW: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(text_1TW).flatten(1))


class Block(nn.Module):
    def __init__(self, shapes: Shapes, name: str, layers: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LayerMaker(shapes, f"{name}.layers.{i}") for i in range(layers))
        self.proj_residual = Residual(shapes, f"{name}.proj_residual") if residual else None


class LoraNetwork(nn.Module):
    """All blocks, under the published tensor names; every size is read from the shapes of the file.

    `depth` and `width` are those of the transformer it is for, `embedding` is X; `tokens` and `text_width` are T and W,
    0 where it reads no text.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        count = block_count(shapes)
        self._places = list(layer_names(count))
        layers = [sum(block == b for b, _, _ in self._places) for block in range(count)]
        self.tokens = residual_tokens(shapes)
        self.blocks = nn.ModuleList(
            Block(shapes, f"blocks.{i}", n, self.tokens > 0) for i, n in enumerate(layers)
        )
        first = "blocks.0.layers.0.proj_a"
        self.depth = 1 + max(int(name.split(".")[1]) for _, _, name in self._places)
        self.width = shapes[f"{first}.proj_out.weight"][0] // RANK
        self.embedding = shapes[f"{first}.proj_in.weight"][1]
        self.text_width = shapes["blocks.0.proj_residual.proj_in.weight"][1] if self.tokens else 0

    def forward(self, x_1X: Tensor, text_1TW: Tensor | None = None) -> dict[str, LowRank]:
        """The LoRA of one picture, by path of the transformer's layers. `text_1TW` is for networks that read text."""
        like = next(self.parameters())
        x_1X = x_1X.to(like)
        blocks: list[Any] = list(self.blocks)
        residuals: list[Tensor | None] = [None] * len(blocks)
        if text_1TW is not None:
            scaled_1TW = text_1TW.to(like) * RESIDUAL_SCALE
            residuals = [block.proj_residual(scaled_1TW) for block in blocks]
        return {
            name: blocks[block].layers[layer](x_1X, residuals[block]) for block, layer, name in self._places
        }


def _linear(shapes: Shapes, name: str) -> nn.Linear:
    outputs, inputs = shapes[f"{name}.weight"]
    return nn.Linear(inputs, outputs, bias=False)
