"""How many blocks of a component may stay on the device, so that a limit is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from qwenimage_core.errors import MemoryLimitError
from qwenimage_core.memory.measure import in_use

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component

GIB = 2**30


class Budget:
    """Counts blocks for one pipeline. `working` is what the running stage needs beside weights, in bytes; the pipeline
    sets it from the plan."""

    def __init__(self) -> None:
        self.working = 0

    def __call__(self, component: Component) -> int:
        """Blocks to prepare. Raises MemoryLimitError where not even the buffers of a stream fit."""
        blocks, limit = component.blocks, component.placement.limit
        if limit is None:
            return len(blocks.units)
        used = in_use(component.device) or 0
        others = used - component.resident_bytes()
        room = limit - max(others, 0) - component.base_bytes - self.working
        return blocks_that_fit(component, room, limit)


def blocks_that_fit(component: Component, room: int, limit: int) -> int:
    """Blocks of a component that fit into `room` bytes."""
    blocks, preparing = component.blocks, component.placement.preparing
    return fit(
        component.spec.name,
        blocks.resting_bytes(preparing),
        blocks.buffer_bytes(),
        room,
        limit,
        as_they_compute=preparing == component.placement.computation,
    )


def fit(
    name: str, sizes: Sequence[int], buffers: int, room: int, limit: int, *, as_they_compute: bool
) -> int:
    """Blocks of these sizes that fit into `room` bytes; beside those that stay, two buffers are needed for those that
    come and go, and for all where they do not stay as they compute. Raises MemoryLimitError if not even those fit."""
    if sum(sizes) + (0 if as_they_compute else buffers) <= room:
        return len(sizes)
    if not sizes or buffers > room:
        least = limit - room + (buffers if sizes else 0)
        raise MemoryLimitError(
            f"The {name} does not fit into the memory it may use.",
            got=f"a limit of {limit / GIB:.2f} GiB",
            expected=f"{least / GIB:.2f} GiB or more for this request"
            + (", with one block computing and one on its way" if sizes else ""),
            mend="raise the limit, draw a smaller picture, or compute in a narrower dtype",
        )
    # whichever of them will stay, they are not more than the largest
    fitting = sum(taken <= room - buffers for taken in accumulate(sorted(sizes, reverse=True)))
    return min(fitting, len(sizes) - 1)
