"""`memory="8gb"`: where each component's weights are, chosen from their sizes and from what is free.

The first of these that fits, stage by stage:
- resident: everything is read once and stays;
- by stage: a component is there as a whole while its stage runs, and leaves after it;
- streamed: as many blocks as fit stay, in the dtype they are stored in where that is the narrower one; the others come
  from host memory where an accelerator computes and the host has room, else from disk.
What is chosen are ordinary Placements: nothing else knows of presets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from qwenimage_core.errors import LoadError, MemoryLimitError
from qwenimage_core.loading.placement import GIB, Place, Placement, numbered
from qwenimage_core.loading.places import DISK
from qwenimage_core.memory.measure import available, in_use
from qwenimage_core.memory.sizes import Sizes, Work

AUTO = "auto"
NAMED = ("8gb", "16gb", "24gb")
SHARE = 0.9  # of what is free, for `auto` and for host memory: the system and other programs need some

Memory = str | int
_GIGABYTES = re.compile(r"(\d+(?:\.\d+)?)gb")


@dataclass(frozen=True)
class Machine:
    """`limit` is the most bytes that may be in use on `device`, `used` what is in use there already, `host` what may be
    taken of host memory beside an accelerator (0 where the CPU computes: its memory is the device's)."""

    device: str
    limit: int
    used: int = 0
    host: int = 0

    @classmethod
    def of(cls, memory: Memory, device: torch.device) -> Machine:
        """This machine now, with what `memory` allows of it. Raises LoadError for no such preset."""
        wanted = parse(memory)
        used, free = in_use(device), available(device)
        if wanted is None and (used is None or free is None):
            raise LoadError(
                'memory="auto" needs to know what is free, which this system does not say.',
                mend='give a limit, as memory="8gb" or a number of bytes',
            )
        limits = [wanted] if wanted is not None else []
        if used is not None and free is not None:
            limits.append(used + int(SHARE * free))
        host = 0 if device.type == "cpu" else available(torch.device("cpu")) or 0
        return cls(numbered(device), min(limits), used or 0, int(SHARE * host))


def parse(memory: Memory) -> int | None:
    """The limit in bytes; None for "auto"."""
    if memory == AUTO:
        return None
    if isinstance(memory, str) and (match := _GIGABYTES.fullmatch(memory.strip().lower())):
        memory = int(float(match[1]) * GIB)
    if isinstance(memory, str) and memory.isdecimal():
        memory = int(memory)
    if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise LoadError(
            "`memory` is no amount of memory.",
            got=repr(memory),
            expected=f"{AUTO}, {', '.join(NAMED)} (or another number of gb), or bytes",
        )
    return memory


def choose(parts: Sequence[Sizes], work: Work, machine: Machine) -> dict[str, Placement]:
    """A placement for each component, by name. Raises MemoryLimitError, with the least that would do."""
    room = machine.limit - machine.used
    everything = sum(part.whole + part.later_bytes * work.pictures for part in parts)
    if everything + max(work.encode, work.denoise, work.decode) <= room:
        return {part.name: _resident(part, machine) for part in parts}
    streamed: set[str] = set()
    least = 0
    for stage in ("encode", "denoise", "decode"):
        acting = [part for part in parts if _acts(part, stage, work)]
        streamed |= _streamed(acting, stage, work, room)
        least = max(least, _needs(acting, {p.name for p in acting if p.blocks}, stage, work))
    if least > room:
        raise MemoryLimitError(
            "This request does not fit into the memory that may be used.",
            got=f"a limit of {machine.limit / GIB:.2f} GiB, of which {machine.used / GIB:.2f} GiB are in use",
            expected=f"{(least + machine.used) / GIB:.2f} GiB or more, with every block on its way when it is needed",
            mend="raise the limit, draw a smaller picture, use tiled, or compute in a narrower dtype",
        )
    waiting = _in_host_memory(parts, machine.host)
    return {
        part.name: _placement(part, machine, part.name in streamed, part.name in waiting) for part in parts
    }


def _acts(part: Sizes, stage: str, work: Work) -> bool:
    if part.name == "vae":
        return stage == "decode" or (stage == "encode" and work.pictures)
    return part.denoises == (stage == "denoise") and stage != "decode"


def _streamed(acting: Sequence[Sizes], stage: str, work: Work, room: int) -> set[str]:
    """The fewest and largest components that have to stream, so that the stage fits."""
    chosen: set[str] = set()
    for part in sorted(acting, key=lambda part: -part.whole):
        if _needs(acting, chosen, stage, work) > room and part.blocks:
            chosen.add(part.name)
    return chosen


def _needs(acting: Sequence[Sizes], streamed: Collection[str], stage: str, work: Work) -> int:
    """Bytes of a stage; what is streamed counts with its buffers alone."""
    seen = stage == "encode" and work.pictures
    weights = sum(p.least if p.name in streamed else p.whole + (p.later_bytes if seen else 0) for p in acting)
    working: int = getattr(work, stage)
    return weights + working


def _in_host_memory(parts: Sequence[Sizes], host: int) -> set[str]:
    """Components whose blocks wait in host memory, first those that every step needs."""
    chosen: set[str] = set()
    for part in sorted(parts, key=lambda part: not part.denoises):
        nbytes = sum(part.blocks) * part.kept.itemsize
        if part.blocks and nbytes <= host:
            chosen.add(part.name)
            host -= nbytes
    return chosen


def _resident(part: Sizes, machine: Machine) -> Placement:
    place = Place(machine.device, part.computes)
    return Placement(place, place, place, place, machine.limit)


def _placement(part: Sizes, machine: Machine, streamed: bool, waits_in_host: bool) -> Placement:
    computation = Place(machine.device, part.computes)
    rest = Place("cpu", part.kept) if waits_in_host else Place(DISK, None)
    if not streamed:
        return Placement(rest, computation, computation, computation, machine.limit)
    return Placement(rest, rest, Place(machine.device, part.kept), computation, machine.limit)
