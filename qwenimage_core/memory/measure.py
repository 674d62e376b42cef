"""How much memory is in use, and the most that was."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

INTERVAL = 0.02  # seconds between two looks at this process
_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")


def in_use(device: torch.device) -> int | None:
    """Bytes: on an accelerator of the whole device, on the CPU anonymous memory of this process. None where the
    system does not say (outside Linux)."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return _field(_STATUS, "RssAnon:")


def available(device: torch.device) -> int | None:
    """Bytes that could be used beside what is in use now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _field(_MEMINFO, "MemAvailable:")


def give_back(device: torch.device) -> None:
    """Have allocators return to the system what they keep for later, so that `in_use` counts what is needed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (trim := getattr(_libc(), "malloc_trim", None)) is not None:
        trim(0)


@cache
def _libc() -> Any:
    """The C library of Linux, where it is glibc; anything else returns memory by itself or not at all."""
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None


@dataclass
class Peak:
    """The most bytes in use so far; None where the system does not say."""

    bytes: int | None = None

    def look(self, device: torch.device) -> None:
        now = in_use(device)
        self.bytes = now if self.bytes is None or now is None else max(self.bytes, now)


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Watch while this is open, from a thread of its own."""
    found, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL):
            found.look(device)

    found.look(device)
    thread = threading.Thread(target=watch, name="qwenimage-memory", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.look(device)


def _field(file: Path, name: str) -> int | None:
    """A line `Name:  123 kB` of a file of the system."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
