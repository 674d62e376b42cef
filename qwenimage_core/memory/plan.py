"""What a run will need, stage by stage, before anything is loaded: weights by component and the work beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from qwenimage_core.errors import MemoryLimitError
from qwenimage_core.loading.placement import GIB, Placement
from qwenimage_core.memory.sizes import OVERHEAD, Sizes, Work

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component

STAGES = ("encode", "denoise", "decode")
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


def acts(part: Sizes, stage: str, work: Work) -> bool:
    """Whether a component computes in a stage. What denoises beside the transformer (a ControlNet) has read its picture
    before."""
    kind = part.name.partition("/")[0]
    if work.kinds is not None and kind not in work.kinds:
        return False
    if kind == "vae":
        return stage == "decode" or (stage == "encode" and work.pictures)
    if stage == "encode":
        return not part.denoises or kind != "transformer"
    return part.denoises and stage == "denoise"


def stages_of(parts: Sequence[Placed], work: Work, used: int = 0) -> tuple[Stage, ...]:
    """Encoding, denoising, decoding. `used` is in use on the device already, by others or by this process.

    Raises MemoryLimitError where a limit cannot be kept, with the least that would do.
    """
    check(parts, work, used)
    return tuple(_stage(name, parts, work, used) for name in STAGES)


def check(parts: Sequence[Placed], work: Work, used: int) -> None:
    """Raise MemoryLimitError unless every stage fits with what cannot be streamed away."""
    limits = [placement.limit for _, placement in parts if placement.limit is not None]
    least = max(used + least_of(name, parts, work) for name in STAGES)
    if limits and least > min(limits):
        raise too_little(min(limits), used, least)


def too_little(limit: int, used: int, least: int) -> MemoryLimitError:
    """Amounts in GiB, the least of them rounded up."""
    return MemoryLimitError(
        "This request does not fit into the memory that may be used.",
        least=least,
        got=f"a limit of {limit / GIB:.2f} GiB, of which {used / GIB:.2f} GiB are in use",
        expected=f"{-(-least * 100 // GIB) / 100:.2f} GiB or more, with every block on its way when it is needed",
        mend="raise the limit, draw a smaller picture, use tiled, or compute in a narrower dtype",
    )


def least_of(stage: str, parts: Sequence[Placed], work: Work) -> int:
    """The fewest bytes that a stage can run in."""
    there = {sizes.name for sizes, placement in parts if _there(sizes, placement, stage, work)}
    seen = work.pictures and stage == "encode"
    weights = sum(least_bytes(s, p, seen) if s.name in there else waiting_bytes(s, p) for s, p in parts)
    return weights + _working(stage, parts, work)


def _stage(stage: str, parts: Sequence[Placed], work: Work, used: int) -> Stage:
    there = [part for part in parts if _there(*part, stage, work)]
    working = _working(stage, parts, work)
    shares = {s.name: Share(s.name, waiting_bytes(s, p)) for s, p in parts}
    seen = work.pictures and stage == "encode"
    taken = used + working
    taken += sum(least_bytes(s, p, seen) if (s, p) in there else shares[s.name].nbytes for s, p in parts)
    # what may have to stream takes what the others leave, and each has at least what it cannot do without
    for sizes, placement in sorted(there, key=lambda part: part[0].buffers):
        others = taken - least_bytes(sizes, placement, seen)
        shares[sizes.name] = share_of(sizes, placement, others, seen)
        taken = others + shares[sizes.name].nbytes
    found = tuple(share for share in shares.values() if share.nbytes)
    return Stage(stage, found, working)


def _there(sizes: Sizes, placement: Placement, stage: str, work: Work) -> bool:
    return acts(sizes, stage, work) or not placement.leaves


def _working(stage: str, parts: Sequence[Placed], work: Work) -> int:
    """Weights are read before the work begins, but for those that are streamed."""
    loading = [s.loading for s, p in parts if acts(s, stage, work) and not (p.streams and s.blocks)]
    return OVERHEAD + max([work.at(stage), *loading])


def waiting_bytes(sizes: Sizes, placement: Placement) -> int:
    """On the device while another stage runs."""
    offload = placement.offload
    if offload.on_disk:
        return 0
    blocks = sizes.resting(offload.dtype) if offload.device == placement.computation.device else ()
    return sizes.base * sizes.computes.itemsize + sum(blocks)


def least_bytes(sizes: Sizes, placement: Placement, seen: bool) -> int:
    """Bytes on the device without which a component cannot run: where it streams within a limit, with no block that
    stays."""
    if placement.limit is None or not placement.streams:
        return share_of(sizes, placement, pictures=seen).nbytes
    return _base(sizes, placement, seen) + sizes.buffers + sum(_onload(sizes, placement))


def share_of(sizes: Sizes, placement: Placement, taken: int | None = None, pictures: bool = False) -> Share:
    """One component while it computes, where `taken` bytes are in use by all else; None: without regard to a limit."""
    computes, preparing, rest = placement.computation, placement.preparing, placement.onload
    base, onload = _base(sizes, placement, pictures), _onload(sizes, placement)
    blocks = sizes.resting(preparing.dtype)
    stay = len(blocks)
    if placement.limit is not None and taken is not None:
        room = placement.limit - taken - base - sum(onload)
        more = [there - waits for there, waits in zip(blocks, onload, strict=True)]
        stay = fit(more, sizes.buffers, room, as_they_compute=preparing == computes)
    moving = rest != computes and (stay < len(blocks) or preparing != computes)
    buffers = sizes.buffers if moving else 0
    host = 0 if rest.on_disk or rest.device == computes.device else sum(sizes.resting(rest.dtype)[stay:])
    return Share(
        sizes.name,
        base + sum(blocks[:stay]) + sum(onload[stay:]) + buffers,
        buffers,
        stay if moving else len(blocks),
        len(blocks),
        host,
    )


def fit(sizes: Sequence[int], buffers: int, room: int, *, as_they_compute: bool) -> int:
    """How many blocks of these sizes fit into `room` bytes; beside those that stay, buffers are needed for those that
    come and go, and for all where they do not stay as they compute."""
    if sum(sizes) + (0 if as_they_compute else buffers) <= room or not sizes:
        return len(sizes)
    # whichever of them will stay, they are not more than the largest
    fitting = sum(taken <= room - buffers for taken in accumulate(sorted(sizes, reverse=True)))
    return min(fitting, len(sizes) - 1)


def _base(sizes: Sizes, placement: Placement, seen: bool) -> int:
    more = sizes.seen(placement.streams) if seen else 0
    return sizes.base * sizes.computes.itemsize + more


def _onload(sizes: Sizes, placement: Placement) -> list[int]:
    """Bytes of each block on the device while it waits for its turn."""
    rest = placement.onload
    if rest.on_disk or rest.device != placement.computation.device:
        return [0] * len(sizes.blocks)
    return sizes.resting(rest.dtype)


def placed(components: Mapping[str, Sequence[Component]]) -> list[Placed]:
    """All components with their placements of now; several of a kind are numbered."""
    return [(Sizes.of(name, component), component.placement) for name, component in named(components)]


def named(components: Mapping[str, Sequence[Component]]) -> list[tuple[str, Component]]:
    return [
        (name + (f"/{i}" if len(several) > 1 else ""), component)
        for name, several in components.items()
        for i, component in enumerate(several)
    ]
