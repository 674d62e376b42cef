"""Timing two ways of doing one thing, in turn, in one process."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """Seconds of ours and theirs, the medians of all rounds, and the median of the rounds' ratios ours / theirs."""

    ours: float
    theirs: float
    ratio: float


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int = 9, warm_up: int = 1
) -> Comparison:
    """Time both in every round, the order swapped from round to round; the first `warm_up` rounds do not count."""
    pairs = []
    for number in range(warm_up + rounds):
        if number % 2:
            second = seconds(theirs)
            pair = (seconds(ours), second)
        else:
            pair = (seconds(ours), seconds(theirs))
        if number >= warm_up:
            pairs.append(pair)
    return Comparison(
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(a / b for a, b in pairs),
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine() -> str:
    """One line: date, processor, cores that this process may use, threads, Python and torch."""
    info = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    library = f"torch {torch.__version__}, {torch.get_num_threads()} threads" if torch else "no torch"
    name = models[0] if models else platform.processor()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {name}, {cores} cores, Python {platform.python_version()}, {library}"
    )


def report(name: str, value: float, target: float, detail: str = "") -> bool:
    """Print one figure against the most it may be; whether it is within."""
    within = value <= target
    print(
        f"{name}: {value:.3f} (target <= {target:g}, {'reached' if within else 'MISSED'}){detail and '; ' + detail}"
    )
    return within


def finish(*reached: bool) -> None:
    """End the script: with an error if any figure missed its target."""
    sys.exit(0 if all(reached) else 1)
