"""What a pipeline does with its components between the stages of a run, and what it remembers between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenimage_core.memory.budget import Budget

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.models.modulation import StepModulation
    from qwenimage_core.plan import Plan

# A transformer block holds some 20 token-wide tensors (streams, projections, the feed-forward's fourfold width); the
# last stage of the decoder some six pictures of its width in feature maps. Measured within a third.
TENSORS_A_TOKEN, MAPS_A_PIXEL = 20, 6


class Keeper:
    """Loads components for their stage and sends them away after it; keeps the last schedule's modulation table."""

    def __init__(self, components: Mapping[str, Sequence[Component]]) -> None:
        self.components = components
        self.budget = Budget()
        self._table: tuple[Any, StepModulation] | None = None
        for component in self._all():
            component.budget = self.budget

    @property
    def managed(self) -> bool:
        """Whether any component is ever elsewhere than where it computes."""
        return any(component.placement.managed for component in self._all())

    def begin_encoding(self, plan: Plan) -> None:
        self.budget.working = decoding_bytes(
            plan, self.components["vae"][0].itemsize
        )  # encoding a picture is alike

    def begin_denoising(self, plan: Plan) -> None:
        """Encoders leave; what computes in every step gets as much memory as it may have."""
        transformer = self.components["transformer"][0]
        self.budget.working = denoising_bytes(plan, transformer.itemsize)
        for component in self._all():
            if not component.spec.denoises:
                component.leave()
        for component in self._all():
            if component.spec.denoises and component.loaded and component.placement.limit is not None:
                component.load(prepared=self.budget(component))

    def begin_decoding(self, plan: Plan) -> None:
        for component in self._all():
            if component.spec.denoises:
                component.leave()
        self.budget.working = decoding_bytes(plan, self.components["vae"][0].itemsize)

    def end(self) -> None:
        for component in self._all():
            component.leave()

    def table(self, key: Any, make: Any) -> StepModulation:
        """The modulation table of this key, made anew unless it is the last one. Where the modulation weights are in
        memory they may be in training, so that nothing is remembered."""
        once = self.components["transformer"][0].once
        if once.open:
            return make()
        if self._table is None or self._table[0] != key:
            self._table = (key, make())
            once.rest()
        return self._table[1]

    def _all(self) -> list[Component]:
        return [component for several in self.components.values() for component in several]


def denoising_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of a step."""
    tokens = max(branch.layout.tokens for branch in plan.branches) * len(plan.seeds)
    return TENSORS_A_TOKEN * tokens * plan.backbone.token_width * itemsize


def decoding_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of the VAE for one picture, or for one tile of it."""
    request = plan.request
    pixels = request.height * request.width
    if request.tiled:
        side = request.tile_size * plan.backbone.vae_scale
        pixels = min(pixels, side * side)
    return MAPS_A_PIXEL * pixels * plan.backbone.vae_width * itemsize
