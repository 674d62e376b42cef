"""Two buffers and one background thread: one unit computes while the next is read into the other buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from qwenimage_core.loading.units import Unit, aligned

SLOTS = 2
PIECE = 2**20  # bytes that are cast at a time on the CPU: they stay in its cache


class Slot:
    """Room for one unit of a stream on the device that computes, and for one tensor as it comes from its rest.

    `staging` is host memory, pinned where an accelerator copies from it.
    """

    def __init__(self, staging: int, device: torch.device) -> None:
        self.device = device
        self.flat = torch.empty(0, dtype=torch.uint8, device=device)
        self.staging = torch.empty(staging, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._used: Any = None  # on an accelerator: the event after the last kernel that reads this slot

    def views(self, unit: Unit, dtype: torch.dtype) -> list[Tensor]:
        """One tensor a leaf, one after the other in `flat`."""
        needed = unit.nbytes(dtype)
        if (
            not needed <= self.flat.numel() <= 2 * needed
        ):  # units are alike, but for an embedding among layers
            self.flat = torch.empty(0, dtype=torch.uint8, device=self.device)
            self.flat = torch.empty(needed, dtype=torch.uint8, device=self.device)
        found, at = [], 0
        for leaf in unit.leaves:
            kind = dtype if leaf.empty.is_floating_point() else leaf.empty.dtype
            size = leaf.empty.numel() * kind.itemsize
            found.append(self.flat[at : at + size].view(kind).reshape(leaf.empty.shape))
            at += aligned(size)
        return found

    def leave(self) -> None:
        """Called when the last kernel that reads the slot has been given to the device."""
        if self.device.type == "cuda":
            self._used = torch.cuda.Event()
            self._used.record()

    def wait(self) -> None:
        """Until the slot may be written again."""
        if self._used is not None:
            self._used.synchronize()
            self._used = None


Fill = Callable[[int, Slot], None]


class Reader:
    """Hands out filled slots by unit number, and reads ahead what it is told to.

    An error while reading ahead is raised when that unit is asked for.
    """

    def __init__(self, fill: Fill, slots: Sequence[Slot]) -> None:
        self._fill, self._free = fill, list(slots)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qwenimage-weights")
        self._leave_cores()
        self._ahead: tuple[int, Future[None], Slot] | None = None

    def _leave_cores(self) -> None:
        """Cast with a quarter of the cores that compute: each of them waits for the slowest, and with all of them doing
        both, for every cast in full."""
        threads = torch.get_num_threads()
        self._thread.submit(torch.set_num_threads, max(1, threads // 4)).result()
        # it holds for the thread that calls it, and for those that are to come
        torch.set_num_threads(threads)

    def get(self, number: int) -> Slot:
        """The slot with this unit; waits for the reader, or reads now if something else was read ahead."""
        if self._ahead is not None and self._ahead[0] == number:
            _, future, slot = self._ahead
            self._ahead = None
            self._finish(future, slot)
            return slot
        self.forget()
        slot = self._free.pop()
        self._finish(self._thread.submit(self._fill, number, slot), slot)
        return slot

    def ahead(self, number: int) -> None:
        """Begin to read a unit, if there is a slot for it."""
        if self._ahead is None and self._free:
            slot = self._free.pop()
            self._ahead = number, self._thread.submit(self._fill, number, slot), slot

    def give_back(self, slot: Slot) -> None:
        slot.leave()
        self._free.append(slot)

    def forget(self) -> None:
        """Drop what was read ahead."""
        if self._ahead is not None:
            _, future, slot = self._ahead
            self._ahead = None
            future.exception()  # waits; an error of a unit that nobody asked for harms nobody
            self._free.append(slot)

    def close(self) -> None:
        self.forget()
        self._thread.shutdown()

    def _finish(self, future: Future[None], slot: Slot) -> None:
        try:
            future.result()
        except BaseException:
            self._free.append(slot)
            raise
