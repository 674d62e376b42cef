"""What a pipeline does with its components between the stages of a run, and what it remembers between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenimage_core.memory.budget import Budget
from qwenimage_core.memory.plan import decoding_bytes, denoising_bytes

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.models.modulation import StepModulation
    from qwenimage_core.plan import Plan


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
