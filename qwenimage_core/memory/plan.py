"""What a run will need, stage by stage, before anything is loaded: weights by component and the work beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenimage_core.loading.placement import Placement
from qwenimage_core.memory.budget import fit
from qwenimage_core.memory.sizes import Sizes, Work

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.plan import Plan

Placed = tuple[Sizes, Placement]


@dataclass(frozen=True)
class Share:
    """A component in a stage: bytes on the device, of which the buffers of its stream, and how many blocks stay. `host`
    are bytes that wait in host memory for an accelerator."""

    component: str
    nbytes: int
    buffers: int = 0
    blocks: int = 0
    of_blocks: int = 0
    host: int = 0


@dataclass(frozen=True)
class Stage:
    """`working` is what is needed beside weights."""

    name: str
    shares: tuple[Share, ...]
    working: int

    @property
    def nbytes(self) -> int:
        return self.working + sum(share.nbytes for share in self.shares)


def stages_of(parts: Sequence[Placed], work: Work, used: int = 0) -> tuple[Stage, ...]:
    """Encoding, denoising, decoding. `used` is in use on the device already, by others or by this process.

    Raises MemoryLimitError where a component's limit cannot be kept.
    """
    names = {
        "encode": [s.name for s, _ in parts if not s.denoises and (work.pictures or s.name != "vae")],
        "denoise": [s.name for s, _ in parts if s.denoises],
        "decode": [s.name for s, _ in parts if s.name == "vae"],
    }
    found = []
    for stage, acting in names.items():
        working: int = getattr(work, stage)
        seen = work.pictures and stage == "encode"
        taken, shares = used + working, []
        # what may have to stream takes what the others leave
        for sizes, placement in sorted(parts, key=lambda part: part[0].buffers):
            if sizes.name in acting or not placement.leaves:
                share = share_of(sizes, placement, taken, seen)
                taken += share.nbytes
                shares.append(share)
        order = {sizes.name: number for number, (sizes, _) in enumerate(parts)}
        found.append(Stage(stage, tuple(sorted(shares, key=lambda s: order[s.component])), working))
    return tuple(found)


def share_of(sizes: Sizes, placement: Placement, taken: int = 0, pictures: bool = False) -> Share:
    """One component while it computes, where `taken` bytes are in use by all else."""
    computes, preparing, rest = placement.computation, placement.preparing, placement.onload
    assert computes.dtype is not None
    size = computes.dtype.itemsize
    base = sizes.base * size
    if pictures and not placement.streams:
        base += sum(sizes.later) * size
    blocks = sizes.resting(preparing)
    stay = len(blocks)
    if placement.limit is not None:
        room = placement.limit - taken - base
        stay = fit(
            sizes.name,
            blocks,
            sizes.buffers,
            room,
            placement.limit,
            as_they_compute=preparing == computes,
        )
    others = 0 if rest.on_disk else sum(sizes.resting(rest)[stay:])
    moving = rest != computes and (stay < len(blocks) or preparing != computes)
    buffers = sizes.buffers if moving else 0
    here = rest.device == computes.device
    return Share(
        sizes.name,
        base + sum(blocks[:stay]) + buffers + (others if here else 0),
        buffers,
        stay if moving else len(blocks),
        len(blocks),
        0 if here else others,
    )


def placed(components: Mapping[str, Sequence[Component]]) -> list[Placed]:
    """All components with their placements of now; several of a kind are numbered."""
    return [(Sizes.of(name, component), component.placement) for name, component in named(components)]


def named(components: Mapping[str, Sequence[Component]]) -> list[tuple[str, Component]]:
    return [
        (name + (f"/{i}" if len(several) > 1 else ""), component)
        for name, several in components.items()
        for i, component in enumerate(several)
    ]


def stages(
    plans: Sequence[Plan], components: Mapping[str, Sequence[Component]], used: int = 0
) -> tuple[Stage, ...]:
    """Of the plans of one request, see `stages_of`."""
    return stages_of(placed(components), Work.of(plans, components), used)
