"""Sequence parallel: every process holds all weights, and computes a share of the tokens.

Everything in a block but attention acts on single tokens. There, each process has the queries of its own tokens, and
gathers the keys and values of all. The noise, the appended image tokens and the text are each cut into one part a
process, so that the work is even whatever the tokens are.

Shape legend: B batch, N image tokens, M noise tokens, L text tokens, S = L + N joint tokens, text first; an index "own"
means this process's tokens of these. H heads, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwenimage_core.errors import RequestError
from qwenimage_core.models.rope import Rope
from qwenimage_core.models.transformer import QwenImageTransformer, Residual
from qwenimage_core.parallel.attention import GatheredAttention
from qwenimage_core.parallel.gather import Gather


def split(transformer: QwenImageTransformer, rank: int, world: int) -> None:
    """Make a transformer compute this process's share of the tokens in every pass."""
    transformer.blockwise = Split(transformer, rank, world)  # type: ignore[method-assign]


class Split:
    """Stands before the transformer's `blockwise`: the same arguments, the same velocity on every process."""

    def __init__(self, transformer: QwenImageTransformer, rank: int, world: int) -> None:
        self.transformer, self.rank, self.world = transformer, rank, world

    def __call__(
        self,
        x_BNC: Tensor,
        text_BLD: Tensor,
        rope: Rope,
        modulation: Any,
        *,
        noise_tokens: int,
        zero_rows: tuple[slice, ...] = (),
        attend: Any = None,
        residual: Residual | None = None,
        **options: Any,
    ) -> Generator[None, None, Tensor]:
        self._check(text_BLD.shape[1], noise_tokens)
        texts, images = text_BLD.shape[1], x_BNC.shape[1]
        text = self._all_own([(0, texts)], x_BNC.device)
        noise = self._all_own([(0, noise_tokens)], x_BNC.device)
        image = self._all_own([(0, noise_tokens), (noise_tokens, images)], x_BNC.device)
        joint = [torch.cat([t, texts + i]) for t, i in zip(text, image, strict=True)]
        own = self.rank
        v_BMC = yield from QwenImageTransformer.blockwise(
            self.transformer,
            x_BNC[:, image[own]],
            text_BLD[:, text[own]],
            Rope(rope.cos_SD[joint[own]], rope.sin_SD[joint[own]]),
            modulation,
            noise_tokens=len(noise[own]),
            zero_rows=_own_rows(image[own], zero_rows),
            attend=GatheredAttention(attend, Gather(joint), joint[own], texts + noise[own]),
            residual=None if residual is None else self._whole(residual, Gather(image), Gather(noise)),
            **options,
        )
        return Gather(noise)(v_BMC, dim=1)

    def _all_own(self, runs: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """For each process, the numbers of its tokens: its part of each run."""
        return [
            torch.cat([_part(start, stop, rank, self.world, device) for start, stop in runs])
            for rank in range(self.world)
        ]

    def _whole(self, residual: Residual, image: Gather, noise: Gather) -> Residual:
        """Shows a residual the tokens of all processes, as it knows them, and goes on with the own ones of its answer.
        After the last block only noise tokens are left."""
        last = len(self.transformer.transformer_blocks) - 1

        def act(block: int, own_BND: Tensor) -> Tensor | None:
            gather = noise if block == last else image
            changed = residual(block, gather(own_BND, dim=1))
            return None if changed is None else changed[:, gather.parts[self.rank]]

        return act

    def _check(self, texts: int, noise: int) -> None:
        if torch.is_grad_enabled():
            raise RequestError(
                'parallel="sequence" is for drawing: gradients do not pass between processes.',
                mend="draw under torch.no_grad(), or train with an engine of qwenimage-training",
            )
        if min(texts, noise) < self.world:
            raise RequestError(
                "There are fewer tokens than processes.",
                got=f"{texts} text and {noise} noise tokens for {self.world} processes",
                mend="give torchrun a smaller --nproc_per_node, or draw a larger picture",
            )


def _part(start: int, stop: int, rank: int, world: int, device: torch.device) -> Tensor:
    number = stop - start
    return torch.arange(start + rank * number // world, start + (rank + 1) * number // world, device=device)


def _own_rows(own: Tensor, rows: Sequence[slice]) -> tuple[slice, ...]:
    """Where slices of all image tokens lie among the own ones. A process may have two runs of one slice (at the end of
    its noise and in what is appended): they follow each other, because own tokens are in order."""
    found = []
    for each in rows:
        inside = ((own >= each.start) & (own < each.stop)).nonzero().flatten().tolist()
        if inside:
            found.append(slice(inside[0], inside[-1] + 1))
    return tuple(found)
