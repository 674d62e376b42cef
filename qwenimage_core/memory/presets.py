"""`memory="8gb"`: where each component's weights are, chosen from their sizes and from what is free.

The first of these that fits, stage by stage:
- resident: everything is read once and stays;
- resident as stored: the same, where files have fewer bytes than what computes: a block is decoded when it computes;
- by stage: a component is there as a whole while its stage runs, and leaves after it;
- streamed: as many blocks as fit stay, as stored where that takes less; the others come from host memory where an
  accelerator computes and the host has room, else from disk.
What is chosen are ordinary Placements: nothing else knows of presets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.placement import GIB, Place, Placement, numbered
from qwenimage_core.loading.places import DISK
from qwenimage_core.memory.measure import available, in_use
from qwenimage_core.memory.plan import STAGES, acts, check, least_of
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
    for as_stored in (False, True):
        resident = {part.name: _resident(part, machine, as_stored) for part in parts}
        if all(_needs(stage, parts, resident, work) <= machine.limit - machine.used for stage in STAGES):
            return resident
    waiting = _in_host_memory(parts, machine.host)
    chosen = {part.name: _placement(part, machine, False, part.name in waiting) for part in parts}
    for stage in STAGES:
        # the fewest and largest components stream, so that the stage fits
        for part in sorted((p for p in parts if acts(p, stage, work)), key=lambda part: -part.whole):
            fits = _needs(stage, parts, chosen, work) <= machine.limit - machine.used
            if not fits and part.buffers < sum(part.resting(part.computes)):
                chosen[part.name] = _placement(part, machine, True, part.name in waiting)
    check([(part, chosen[part.name]) for part in parts], work, machine.used)
    return chosen


def _needs(stage: str, parts: Sequence[Sizes], placements: Mapping[str, Placement], work: Work) -> int:
    return least_of(stage, [(part, placements[part.name]) for part in parts], work)


def _in_host_memory(parts: Sequence[Sizes], host: int) -> set[str]:
    """Components whose blocks wait in host memory, first those that every step needs."""
    chosen: set[str] = set()
    for part in sorted(parts, key=lambda part: not part.denoises):
        nbytes = sum(part.resting(part.kept))
        if part.blocks and nbytes <= host:
            chosen.add(part.name)
            host -= nbytes
    return chosen


def _resident(part: Sizes, machine: Machine, as_stored: bool) -> Placement:
    computation = Place(machine.device, part.computes)
    place = Place(machine.device, part.kept) if as_stored else computation
    return Placement(place, place, place, computation, machine.limit)


def _placement(part: Sizes, machine: Machine, streamed: bool, waits_in_host: bool) -> Placement:
    computation = Place(machine.device, part.computes)
    rest = Place("cpu", part.kept) if waits_in_host else Place(DISK, None)
    if not streamed:
        return Placement(rest, computation, computation, computation, machine.limit)
    return Placement(rest, rest, Place(machine.device, part.kept), computation, machine.limit)
