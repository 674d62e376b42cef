"""The units of one component, of which some stay and the others come to a buffer when they compute.

A unit is *open* (its parameters are in memory as they compute), *held* (in memory, but elsewhere, in another dtype, or
as its file has it) or on disk. Held units and those on disk are put into a buffer by a hook before their module runs,
and stay there until the next one runs, which was read meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qwenimage_core.loading.encoding import Stored
from qwenimage_core.loading.placement import Place, Placement
from qwenimage_core.loading.places import DISK
from qwenimage_core.loading.reader import SLOTS, Reader, Slot
from qwenimage_core.loading.units import Unit


class Source(Protocol):
    """Where the weights of a component come from."""

    def read_into(self, name: str, view: Tensor, staging: Tensor) -> None: ...

    def read_as(self, name: str, device: str, dtype: torch.dtype) -> Tensor: ...

    def read_stored(self, name: str, device: str) -> Stored: ...

    def stored_bytes(self, name: str) -> int: ...

    def staging_bytes(self, name: str) -> int: ...


class Stream:
    """Makes the units of a module come and go. `cyclic` for units that run again and again, in this order."""

    def __init__(
        self, units: Sequence[Unit], placement: Placement, source: Source, *, cyclic: bool = True
    ) -> None:
        self.units, self.placement, self.source, self.cyclic = tuple(units), placement, source, cyclic
        self.device = torch.device(placement.computation.device)
        self.dtype = _dtype(placement.computation.dtype)
        self.bytes_read = 0
        self.open: frozenset[int] = frozenset()
        self._held: dict[int, list[Tensor | Stored]] = {}
        self._handles: list[Any] = []
        self._reader: Reader | None = None
        self._slots: list[Slot] = []
        self._taken: tuple[int, Slot] | None = None
        self._moving: tuple[int, ...] = ()
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for unit in self.units:
            for leaf in unit.leaves:
                leaf.clear()

    # --- what stays ---------------------------------------------------------------------------------------------

    def settle(self, prepared: int) -> None:
        """Prepare this many units, spread evenly so that there is always one computing while the next is read; let the
        others rest where `onload` says."""
        stay = _spread(prepared, len(self.units))
        self._arrange(
            [self.placement.preparing if i in stay else self.placement.onload for i in range(len(self.units))]
        )

    def park(self, place: Place) -> None:
        """Put all units to one place, where they wait until they are settled again."""
        self._arrange([place] * len(self.units))

    def close(self) -> None:
        """Give all memory back, buffers too, and leave the modules alone until units are settled again."""
        self.park(Place(DISK, None))
        self._stop()

    def _arrange(self, places: Sequence[Place]) -> None:
        self._stop()
        for number, place in enumerate(places):
            if place == self.placement.computation:
                self._open(number)
            else:
                self._hold(number, place)
        self._start()

    def _open(self, number: int) -> None:
        if number in self.open:
            return
        rest = self._held.pop(number, None)
        for at, leaf in enumerate(self.units[number].leaves):
            leaf.put(
                self.source.read_as(leaf.name, str(self.device), self.dtype)
                if rest is None
                else _tensor(rest[at], self.device, self.dtype)
            )
        self.open |= {number}

    def _hold(self, number: int, place: Place) -> None:
        """Rest a unit at a place in memory, or on disk. It comes from memory if it is there, else from the file."""
        leaves = self.units[number].leaves
        rest = self._held.pop(number, None)
        if number in self.open:
            rest = [leaf.value for leaf in leaves]
            self.open -= {number}
        for leaf in leaves:
            leaf.clear()
        if place.on_disk:
            return
        if place.dtype is None:
            kept = [stored for stored in rest or () if isinstance(stored, Stored)]
            self._held[number] = [stored.to(place.device) for stored in kept] or [
                self.source.read_stored(leaf.name, place.device) for leaf in leaves
            ]
        elif rest is None:
            self._held[number] = [
                self.source.read_as(leaf.name, place.device, place.dtype) for leaf in leaves
            ]
        else:
            self._held[number] = [_tensor(each, place.device, place.dtype) for each in rest]

    # --- what comes and goes ------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._moving = tuple(i for i in range(len(self.units)) if i not in self.open)
        for number in self._moving:
            module = self.units[number].module
            self._handles.append(module.register_forward_pre_hook(_before(self, number)))

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.rest()

    def rest(self) -> None:
        """Give the buffers back until the next unit is asked for."""
        self.drop()
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self._slots = []

    def take(self, number: int) -> None:
        """Put a unit's weights in place, and begin to read the one after it."""
        if self._taken is not None and self._taken[0] == number:
            return
        reader = self._reader or self._buffers()
        slot = reader.get(number)
        self.drop()
        self._taken = number, slot
        unit = self.units[number]
        for leaf, view in zip(unit.leaves, slot.views(unit, self.dtype), strict=True):
            leaf.put(view)
        at = self._moving.index(number) + 1
        if at < len(self._moving) or self.cyclic:
            reader.ahead(self._moving[at % len(self._moving)])

    def drop(self) -> None:
        """Take the weights of the last unit out. It keeps them until the next one is asked for, which may be itself."""
        if self._taken is None:
            return
        number, slot = self._taken
        self._taken = None
        for leaf in self.units[number].leaves:
            leaf.clear()
        if self._reader is not None:
            self._reader.give_back(slot)

    def _buffers(self) -> Reader:
        staging = max(
            self.source.staging_bytes(leaf.name) for i in self._moving for leaf in self.units[i].leaves
        )
        self._slots = [Slot(staging, self.device) for _ in range(SLOTS)]
        self._reader = Reader(self._fill, self._slots)
        return self._reader

    def resident_bytes(self) -> int:
        """On the device of computation now: open units, held ones, and the buffers."""
        held = [t for tensors in self._held.values() for t in tensors if t.device == self.device]
        opened = sum(self.units[number].nbytes(self.dtype) for number in self.open)
        buffers = sum(slot.flat.numel() for slot in self._slots)
        return opened + sum(t.nbytes for t in held) + buffers

    def resting_bytes(self, place: Place) -> list[int]:
        """Of each unit at a place in memory."""
        if place.dtype is not None:
            return [unit.nbytes(place.dtype) for unit in self.units]
        return [sum(self.source.stored_bytes(leaf.name) for leaf in unit.leaves) for unit in self.units]

    def buffer_bytes(self) -> int:
        """The most that the buffers take: of the two largest units, as they compute."""
        return sum(sorted(unit.nbytes(self.dtype) for unit in self.units)[-SLOTS:])

    def _fill(self, number: int, slot: Slot) -> None:
        """Runs in the reader's thread."""
        slot.wait()
        unit = self.units[number]
        views = slot.views(unit, self.dtype)
        with torch.no_grad(), self._copying():
            if number in self._held:
                for view, rest in zip(views, self._held[number], strict=True):
                    view.copy_(_tensor(rest, view.device))
                return
            for leaf, view in zip(unit.leaves, views, strict=True):
                self.source.read_into(leaf.name, view, slot.staging)
                self.bytes_read += self.source.stored_bytes(leaf.name)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        """On CUDA: copies run beside the kernels of the block that computes, and are done when this ends."""
        if self._copies is None:
            yield
            return
        with torch.cuda.stream(self._copies):
            yield
        self._copies.synchronize()


def _before(stream: Stream, number: int) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        stream.take(number)

    return hook


def _spread(some: int, all_of: int) -> frozenset[int]:
    """`some` of the numbers below `all_of`, as far from each other as they can be."""
    return frozenset(i for i in range(all_of) if (i + 1) * some // all_of > i * some // all_of)


def _tensor(rest: Tensor | Stored, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """What waits, on a device; decoded there if it waits as the file has it."""
    tensor = rest.tensor(device) if isinstance(rest, Stored) else rest.to(device)
    return tensor.to(dtype if tensor.is_floating_point() else None)


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    assert dtype is not None, "a place in memory has a dtype"
    return dtype
