"""What torchrun tells a process about itself; no torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Self, get_args

from qwenimage_core.errors import RequestError

Parallel = Literal["data", "tensor", "sequence"]
"""data: each process draws its share of the pictures. tensor: each holds its share of the transformer's weights.
sequence: each computes its share of the tokens."""
COMMAND = "torchrun --nproc_per_node 2 -m qwenimage_core generate ..."


@dataclass(frozen=True)
class Launch:
    """One of `world` processes that run the same command; `local_rank` counts those of this machine."""

    rank: int
    world: int
    local_rank: int

    @classmethod
    def found(cls) -> Self | None:
        """None where this process is the only one."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(name not in os.environ for name in names) or int(os.environ["WORLD_SIZE"]) < 2:
            return None
        return cls(*(int(os.environ[name]) for name in names))


def deserted(error: BaseException) -> bool:
    """Whether a call failed because another process of this run has ended. torch has no type for it."""
    signs = ("closed by peer", "reset by peer", "remote process exited", "broken pipe")
    text = str(error).lower()
    return isinstance(error, RuntimeError) and Launch.found() is not None and any(s in text for s in signs)


def leads() -> bool:
    """Whether this process speaks for all: prints, and says what was done."""
    launch = Launch.found()
    return launch is None or launch.rank == 0


def checked(parallel: str | None) -> Parallel | None:
    """A way that was asked for, if there are several processes for it. Raises RequestError otherwise."""
    if parallel is None:
        return None
    if parallel not in get_args(Parallel):
        raise RequestError(
            "There is no such way to share a run.", got=parallel, expected=", ".join(get_args(Parallel))
        )
    if Launch.found() is None:
        raise RequestError(
            f"parallel={parallel!r} needs several processes, and this is the only one.",
            got="RANK, WORLD_SIZE and LOCAL_RANK are not set, or WORLD_SIZE is 1",
            mend=f"start it as: {COMMAND}",
        )
    return parallel  # type: ignore[return-value]  # one of its arguments, as checked above
