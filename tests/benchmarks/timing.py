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
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int = 9,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time both in every round, the order swapped from round to round; the first `warm_up` rounds do not count.

    `clock=time.process_time` counts this process's own processor seconds instead: steadier on a busy machine, and right
    where both sides compute in this process on equally many threads.
    """
    pairs = []
    for number in range(warm_up + rounds):
        if number % 2:
            second = seconds(theirs, clock)
            pair = (seconds(ours, clock), second)
        else:
            pair = (seconds(ours, clock), seconds(theirs, clock))
        if number >= warm_up:
            pairs.append(pair)
    return Comparison(
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(a / b for a, b in pairs),
    )


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, by the clock on the wall unless another is given."""
    start = clock()
    run()
    return clock() - start


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
