"""How many blocks of a component may stay on the device, so that a limit is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qwenimage_core.memory.measure import give_back, in_use
from qwenimage_core.memory.plan import least_bytes, share_of, too_little
from qwenimage_core.memory.sizes import Sizes

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component


class Budget:
    """Counts blocks for one pipeline, in the stage that runs: `working` is what it needs beside weights, in bytes,
    `pictures` whether pictures are encoded, `planned` the blocks that the plan lets stay. The pipeline sets them."""

    def __init__(self) -> None:
        self.enter(0)

    def enter(self, working: int, *, pictures: bool = False, planned: Mapping[Component, int] = {}) -> None:
        self.working, self.pictures, self.planned = working, pictures, planned

    def __call__(self, component: Component) -> int:
        """Blocks to prepare: those of the plan, or fewer where more is in use by now than it reckoned with. Raises
        MemoryLimitError where not even the buffers of a stream fit."""
        placement = component.placement
        if placement.limit is None:
            return len(component.blocks.units)
        give_back(component.device)
        others = max((in_use(component.device) or 0) - component.resident_bytes(), 0)
        sizes = Sizes.of(component.spec.name, component)
        least = others + self.working + least_bytes(sizes, placement, self.pictures)
        if least > placement.limit:
            raise too_little(placement.limit, others, least)
        fitting = share_of(sizes, placement, others + self.working, self.pictures).blocks
        return min(fitting, self.planned.get(component, fitting))
