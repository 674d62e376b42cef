"""Configurations for `accelerate launch`, one an engine, as files of this package. No torch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from qwenimage_core.errors import RequestError

FOLDER = Path(__file__).parent

ENGINES = {
    "ddp": "every process holds all weights (DistributedDataParallel)",
    "fsdp2": "weights, gradients and optimizer shared out among the processes (fully_shard)",
    "zero2": "gradients and optimizer shared out (DeepSpeed ZeRO-2)",
    "zero2-offload": "as zero2, the optimizer and its weights wait in main memory",
    "zero3": "weights, gradients and optimizer shared out (DeepSpeed ZeRO-3)",
}


def config_file(name: str) -> Path:
    """The configuration of an engine. RequestError for a name that is none."""
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        raise RequestError(
            f"There is no engine {name!r}.",
            expected=", ".join(ENGINES),
            mend=f"did you mean {near[0]}?" if near else None,
        )
    return FOLDER / f"{name}.yaml"


def engines(
    name: Annotated[str | None, typer.Argument(help="engine whose configuration is meant")] = None,
) -> None:
    """The file of an engine, for `accelerate launch --config_file $(qwenimage engines zero3) -m qwenimage_training`;
    without a name, what there is."""
    if name is not None:
        print(config_file(name))
        return
    for engine, said in ENGINES.items():
        print(f"{engine:14} {said}")


def add_engines(app: typer.Typer) -> None:
    app.command("engines")(engines)
