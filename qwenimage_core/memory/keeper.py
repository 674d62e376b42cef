"""What a pipeline does with its components between the stages of a run, and what it remembers between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from qwenimage_core.memory.budget import Budget
from qwenimage_core.memory.measure import Peak, give_back, in_use, peak
from qwenimage_core.memory.plan import Stage, named, placed, stages_of
from qwenimage_core.memory.sizes import Sizes, Work

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.memory.presets import Machine
    from qwenimage_core.models.modulation import StepModulation
    from qwenimage_core.plan import Plan


class Keeper:
    """Loads components for their stage and sends them away after it; keeps the last schedule's modulation table.

    With a `machine`, which a memory preset gives, it chooses the placements for each request.
    """

    def __init__(self, components: Mapping[str, Sequence[Component]], machine: Machine | None = None) -> None:
        self.components, self.machine = components, machine
        self.budget = Budget()
        self.used = machine.used if machine is not None else 0
        self._planned: dict[str, dict[Component, int]] = {}
        self._settled: tuple[ReferenceType[Plan], ...] = ()
        self._table: tuple[Any, StepModulation] | None = None
        for component in self._all():
            component.budget = self.budget

    @property
    def managed(self) -> bool:
        """Whether any component is ever elsewhere than where it computes, or a limit is kept."""
        return self.machine is not None or any(component.placement.managed for component in self._all())

    @property
    def _limited(self) -> bool:
        return any(component.placement.limit is not None for component in self._all())

    def settle(self, plans: list[Plan]) -> list[Plan]:
        """Choose placements for these plans, where a preset does, and see that limits can be kept. Components whose
        placement changes are released. Gives the plans back. Raises MemoryLimitError where a limit cannot be kept."""
        known = [plan() for plan in self._settled]
        if not self._limited or all(any(plan is one for one in known) for plan in plans):
            return plans
        parts, work = dict(named(self.components)), Work.of(plans, self.components)
        self.used = self._in_use()
        if self.machine is not None:
            from qwenimage_core.memory.presets import choose

            self.machine = replace(self.machine, used=self.used)
            chosen = choose([Sizes.of(name, part) for name, part in parts.items()], work, self.machine)
            for name, component in parts.items():
                if component.placement != chosen[name]:
                    component.place(chosen[name])
        self._planned = {
            stage.name: {parts[share.component]: share.blocks for share in stage.shares}
            for stage in stages_of(placed(self.components), work, self.used)
        }
        self._settled = tuple(ref(plan) for plan in plans)
        return plans

    def stages(self, plans: Sequence[Plan]) -> tuple[Stage, ...]:
        """What the plans will need, with the placements of now."""
        return stages_of(placed(self.components), Work.of(plans, self.components), self.used)

    def _in_use(self) -> int:
        """On the device, beside our components and what is made anew for a run."""
        device = self.components["transformer"][0].device
        give_back(device)
        ours = sum(component.resident_bytes() for component in self._all())
        table = self._table[1].nbytes if self._table is not None else 0
        return max((in_use(device) or 0) - ours - table, 0)

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """The most memory in use meanwhile, where placement is managed; else no bytes are told."""
        if not self.managed:
            yield Peak()
            return
        with peak(self.components["transformer"][0].device) as most:
            yield most

    def begin_encoding(self, plan: Plan) -> None:
        self.settle([plan])
        self._enter("encode", plan)

    def begin_denoising(self, plan: Plan) -> None:
        """Encoders leave; what computes in every step gets as much memory as it may have."""
        for component in self._all():
            if not component.spec.denoises:
                component.leave()
        self._enter("denoise", plan)
        for component in self._all():
            if component.spec.denoises and component.loaded and component.placement.limit is not None:
                component.load(prepared=self.budget(component))

    def begin_decoding(self, plan: Plan) -> None:
        for component in self._all():
            if component.spec.denoises:
                component.leave()
        self._enter("decode", plan)

    def _enter(self, stage: str, plan: Plan) -> None:
        work = Work.of([plan], self.components)
        pictures = work.pictures and stage == "encode"
        self.budget.enter(work.at(stage), pictures=pictures, planned=self._planned.get(stage, {}))

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
            self._table = None  # not two at a time
            self._table = (key, make())
            once.rest()
        return self._table[1]

    def _all(self) -> list[Component]:
        return [component for several in self.components.values() for component in several]
