"""Which pictures each process draws: one part after the other, so that the parts in order are the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError

if TYPE_CHECKING:
    from qwenimage_core.plan import Plan


def share(plans: Sequence[Plan], rank: int, world: int) -> list[Plan]:
    """The plans of one process. Prompts are shared out whole where there are at least as many as processes: their
    pictures are then drawn in the batches that one process would draw them in, bit for bit. Fewer prompts are cut by
    seed. Raises RequestError where a process would be left with none."""
    if (drawn := sum(len(plan.seeds) for plan in plans)) < world:
        raise RequestError(
            'parallel="data" has fewer pictures than processes.',
            got=f"{drawn} for {world} processes",
            expected="a picture for each process",
            mend='use parallel="sequence" or "tensor", which share one picture, or a smaller --nproc_per_node',
        )
    if len(plans) >= world:
        return list(plans[_part(len(plans), rank, world)])
    pictures = [(plan, seed) for plan in plans for seed in plan.seeds]
    own = pictures[_part(len(pictures), rank, world)]
    cut = [(plan, tuple(seed for of, seed in own if of is plan)) for plan in plans]
    return [plan if seeds == plan.seeds else replace(plan, seeds=seeds) for plan, seeds in cut if seeds]


def _part(number: int, rank: int, world: int) -> slice:
    return slice(rank * number // world, (rank + 1) * number // world)
