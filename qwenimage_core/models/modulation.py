"""How the timestep acts on the transformer: its embedding, and the shift, scale and gate of each block.

Shape legend: B batch, N tokens, D width, L blocks, R timestep rows (0 = the step, 1 = zero), E = 6 D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenimage_core.models.norms import layer_norm

FREQUENCIES = 128  # the sinusoidal embedding is twice as wide


@dataclass(frozen=True)
class StepModulation:
    """Everything that depends on the timestep alone, as plain tensors.

    The E channels are shift, scale, gate of the attention half, then of the feed-forward half. R is 2 when
    tokens of the run are modulated as if the timestep were zero, else 1. Where B enumerates steps, it is a
    table: `step(i)`.
    """

    image_LRBE: Tensor
    text_LBE: Tensor
    scale_BD: Tensor
    shift_BD: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())

    def step(self, index: int) -> StepModulation:
        """One step of a table, with a batch of 1 that acts on every sample alike."""
        rows = slice(index, index + 1)
        return StepModulation(
            self.image_LRBE[:, :, rows], self.text_LBE[:, rows], self.scale_BD[rows], self.shift_BD[rows]
        )


class _TimestepMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class TimestepEmbedding(nn.Module):
    """Timesteps (B,) in 0..1000 -> embedding (B, D), plus a learned row for layered models."""

    def __init__(self, width: int, additional: bool) -> None:
        super().__init__()
        self.timestep_embedder = _TimestepMLP(width)
        if additional:
            self.addition_t_embedding = nn.Embedding(2, width)

    def forward(self, timestep_B: Tensor, addition_t: int | None, dtype: torch.dtype) -> Tensor:
        """The cast to `dtype` comes before the division by 1000, as in every published pipeline: in bfloat16,
        988.573 becomes 988 and then 0.98828125, and the weights were trained to see that."""
        fraction_B = (timestep_B.to(dtype) / 1000).float()
        exponents = torch.arange(FREQUENCIES, dtype=torch.float32, device=timestep_B.device) / FREQUENCIES
        angles = 1000 * (fraction_B[:, None] * torch.exp(-math.log(10000) * exponents))  # (B, FREQUENCIES)
        embedding_BD = self.timestep_embedder(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
        if addition_t is None:
            return embedding_BD
        return embedding_BD + self.addition_t_embedding.weight[addition_t].to(embedding_BD)


class Modulator(nn.Sequential):
    """Time embeddings (..., B, D) -> shifts, scales and gates (..., B, E).

    Several inputs are computed one by one, so that each gives the bits that it would give alone, and joined along B.
    """

    def forward(self, *embeddings: Tensor) -> Tensor:
        return _join([super(Modulator, self).forward(each) for each in embeddings], dim=-2)


Runs = tuple[tuple[int, int, int], ...]  # (start, stop, timestep row) of consecutive tokens
WHOLE: Runs = ((0, 0, 0),)
"""A single run is all tokens, however many: here, those of the step's own timestep."""


def timestep_runs(tokens: int, zero_rows: Sequence[slice]) -> Runs:
    """Cut the first `tokens` image tokens into runs of one timestep row each; `zero_rows` may reach beyond
    them."""
    runs: Runs = ()
    at = 0
    for zero in sorted(zero_rows, key=lambda rows: rows.start):
        start, stop = min(zero.start, tokens), min(zero.stop, tokens)
        if start < at:
            raise ValueError(f"zero_rows overlap or are negative: {zero_rows}")
        runs += ((at, start, 0),) if start > at else ()
        runs += ((start, stop, 1),) if stop > start else ()
        at = max(at, stop)
    return runs + (((at, tokens, 0),) if tokens > at else ())


Rows = Sequence[Tensor]  # (B, 1, D) of each timestep row


def vectors(modulation_RBE: Tensor) -> list[Rows]:
    """Shift, scale, gate, shift, scale, gate, each as its rows."""
    rows = [row_BE.unsqueeze(1).chunk(6, dim=-1) for row_BE in modulation_RBE.unbind(0)]
    return list(zip(*rows, strict=True))


def norm_and_modulate(x_BND: Tensor, shift: Rows, scale: Rows, runs: Runs) -> Tensor:
    """norm(x) * (1 + scale) + shift, each run of tokens with its own row."""
    return _join([_norm_and_modulate(part, shift[row], scale[row]) for part, row in _parts(x_BND, runs)])


def _norm_and_modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """One timestep for the whole batch is a weight and a bias of the norm: one operation instead of three. In fewer
    bits than 32, that would not round where the published model rounds."""
    if scale_B1D.shape[0] == 1 and x_BND.dtype == torch.float32:
        return layer_norm(x_BND, (1 + scale_B1D).flatten(), shift_B1D.flatten())
    return layer_norm(x_BND) * (1 + scale_B1D) + shift_B1D


def add_gated(x_BND: Tensor, delta_BND: Tensor, gate: Rows, runs: Runs) -> Tensor:
    """x + gate * delta, each run of tokens with its own row."""
    parts = zip(_parts(x_BND, runs), _parts(delta_BND, runs), strict=True)
    return _join([x + gate[row] * delta for (x, row), (delta, _) in parts])


def _parts(x_BND: Tensor, runs: Runs) -> list[tuple[Tensor, int]]:
    """The runs with their rows. One run is all of `x_BND`: uncut, because a cut is copied in the backward pass."""
    if len(runs) == 1:
        return [(x_BND, runs[0][2])]
    return [(x_BND[:, start:stop], row) for start, stop, row in runs]


def _join(parts: list[Tensor], dim: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
