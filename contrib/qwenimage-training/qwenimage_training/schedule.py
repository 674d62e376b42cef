"""The learning rate as a function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from typing import Literal

Course = Literal["constant", "cosine", "linear"]


def factor(step: int, total: int, course: Course, warmup: int = 0) -> float:
    """What the learning rate is multiplied with at `step` (0 is the first) of `total`: it rises over `warmup` steps,
    then stays, or falls to reach 0 after the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if course == "linear":
        return max(1 - done, 0.0)
    if course == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0
