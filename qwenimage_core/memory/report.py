"""A memory plan for people: a table by stage, and one line on what was used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwenimage_core.loading.placement import GIB, Place, Placement
from qwenimage_core.memory.plan import Stage, named

if TYPE_CHECKING:
    from qwenimage_core.memory.keeper import Keeper
    from qwenimage_core.memory.presets import Machine
    from qwenimage_core.plan import Plan

MIB = 2**20


def stage_facts(keeper: Keeper, plans: Sequence[Plan]) -> dict[str, Any]:
    """What plans will need, in bytes: the stages, and with a preset its limit and what was in use before."""
    return facts(keeper.stages(plans), keeper.machine)


def memory_facts(keeper: Keeper, plans: Sequence[Plan]) -> dict[str, Any]:
    """What `explain` says of components and stages."""
    told = stage_facts(keeper, plans)
    return {"components": component_facts(keeper), "memory": told, "expected_peak_bytes": told["peak"]}


def facts(stages: Sequence[Stage], machine: Machine | None = None) -> dict[str, Any]:
    """The same of stages."""
    rows = [
        {
            "name": stage.name,
            "bytes": stage.nbytes,
            "working": stage.working,
            "weights": [asdict(share) for share in stage.shares],
        }
        for stage in stages
    ]
    found = {"peak": max(stage.nbytes for stage in stages), "stages": rows}
    return found if machine is None else found | {"limit": machine.limit, "used": machine.used}


def table(memory: Mapping[str, Any]) -> list[str]:
    """What `facts` gives: the peak, then one line a stage with its sum, every component that is there, and the work."""
    limit = (
        f", beside {size(memory['used'])} in use before; limit {size(memory['limit'])}"
        if "limit" in memory
        else ""
    )
    lines = [f"expected peak memory: {size(memory['peak'])}{limit}"]
    for stage in memory["stages"]:
        parts = [f"{share['component']} {_weights(share)}" for share in stage["weights"]]
        parts.append(f"work {size(stage['working'])}")
        lines.append(f"  {stage['name']:<8}{size(stage['bytes']):>10}: {', '.join(parts)}")
    return lines


def component_facts(keeper: Keeper) -> list[dict[str, Any]]:
    """Each component: how large, how it computes, and where its weights are."""
    return [
        {
            "name": name,
            "bytes": component.bytes,
            "dtype": str(component.dtype).removeprefix("torch."),
            "device": str(component.device),
            "state": "loaded" if component.loaded else "on disk",
            "memory": residency(component.placement),
        }
        for name, component in named(keeper.components)
    ]


def component_lines(components: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name, size, dtype and place of each component, as `explain` gives them."""
    for c in components:
        place = f"{c['dtype']:<9} {c['device']:<6} {c['state']}"
        waits = f", {c['memory']}" if c["memory"] else ""
        yield f"  {c['name']:<22} {c['bytes'] / MIB:10.1f} MiB  {place}{waits}"


def residency(placement: Placement) -> str:
    """A placement in words; empty where nothing is ever moved."""
    if not placement.leaves and not placement.streams:
        return ""
    if not placement.streams:
        return f"there for its stage, then {_where(placement.offload, placement)}"
    kept = "" if placement.preparing == placement.computation else f", kept {_kind(placement.preparing)}"
    if placement.offload == placement.onload == placement.preparing:
        return f"stays {_kind(placement.preparing)}"
    return (
        f"streamed from {_where(placement.onload, placement).removeprefix('on ').removeprefix('in ')}{kept}"
    )


def _where(place: Place, placement: Placement) -> str:
    if place.on_disk:
        return "on disk"
    if place.device == placement.computation.device:
        return f"on {place}"
    return f"in {'host memory' if place.device == 'cpu' else place.device}"


def _kind(place: Place) -> str:
    return "as stored" if place.dtype is None else "in " + str(place.dtype).removeprefix("torch.")


def size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / MIB:.0f} MiB"


def _weights(share: Mapping[str, Any]) -> str:
    blocks = f" ({share['blocks']} of {share['of_blocks']} blocks stay)" if share["buffers"] else ""
    host = f" + {size(share['host'])} in host memory" if share["host"] else ""
    return f"{size(share['nbytes'])}{blocks}{host}"
