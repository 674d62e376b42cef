"""The state of a run on disk: all that an exact resume needs, in safetensors and JSON, appearing whole or not at all.

No random state is kept, because there is none: every draw follows from the seed, the epoch and the row.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qwenimage_core.writing import whole_file
from qwenimage_training.errors import TrainingError

PREFIX = "state-"
TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """`batches` are those done by each process, `steps` those of the optimizer. `tensors` have names such as
    `weights/...`, `optimizer/...`, `average/...`; `run` is what must be the same when it goes on."""

    batches: int
    steps: int
    run: Mapping[str, Any]
    saved: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(f"{name}/"): v for k, v in self.tensors.items() if k.startswith(f"{name}/")}


@dataclass(frozen=True)
class Writers:
    """Who writes a state: the first of all processes, or, where each has a part of it, every one its own file into a
    folder that all of them see. `wait` returns when all have called it."""

    rank: int = 0
    world: int = 1
    sharded: bool = False
    wait: Callable[[], None] = lambda: None

    @property
    def file(self) -> str:
        return f"state-{self.rank}-of-{self.world}.safetensors" if self.sharded else TENSORS


ALONE = Writers()


def save_state(folder: Path, state: State, writers: Writers = ALONE) -> Path:
    """Write the state into `folder`, then take away the one before. All processes call it."""
    final = folder / f"{PREFIX}{state.batches}"
    partial = folder / f".{final.name}.partial"
    first = writers.rank == 0
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        writers.wait()
        if first or writers.sharded:
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
            with whole_file(partial / writers.file) as beside:
                save_file(tensors, beside)
        writers.wait()
        if not first:
            return final
        facts = {name: value for name, value in asdict(_bare(state)).items() if name != "tensors"}
        with whole_file(partial / FACTS) as beside:
            beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if final.exists():  # the same state, written by the run that was stopped
            shutil.rmtree(final)
        partial.replace(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"The state of the run cannot be saved in {folder}.",
            got=str(error),
            mend=after_room(folder),
        ) from error
    for old in states(folder):
        if old != final:
            shutil.rmtree(old)
    return final


def _bare(state: State) -> State:
    return State(state.batches, state.steps, state.run, state.saved, state.numbers)


def after_room(folder: Path) -> str:
    """What to do where a run could not save."""
    again = "add --resume: what was saved before is untouched" if states(folder) else "run the command again"
    return f"make room and {again}"


def clear_partial(folder: Path) -> None:
    """Take away what a killed run had half written."""
    for partial in folder.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def states(folder: Path) -> list[Path]:
    """The states in a folder, the newest last."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)))


def load_state(folder: Path, run: Mapping[str, Any], writers: Writers = ALONE) -> State:
    """The newest state, of shared-out weights the part of this process. TrainingError if there is none, or if it is of
    a run of another course."""
    found = states(folder)
    if not found:
        raise TrainingError(
            f"There is nothing to resume in {folder}.",
            expected=f"a folder {PREFIX}N",
            mend="leave --resume out",
        )
    facts = _facts(found[-1])
    differing = [name for name in run if facts["run"].get(name) != run[name]]
    if differing:
        name = differing[0]
        raise TrainingError(
            f"The run in {folder} cannot go on: {', '.join(differing)} changed since it was saved.",
            got=f"{name}: {run[name]!r}",
            expected=f"{name}: {facts['run'].get(name)!r}",
            mend="use the settings and the dataset of the stopped run, or another --output_path",
        )
    try:
        tensors = load_file(found[-1] / writers.file)
    except (OSError, SafetensorError) as error:
        raise damaged(found[-1] / writers.file, error) from error
    return State(
        facts["batches"], facts["steps"], facts["run"], tuple(facts["saved"]), facts["numbers"], tensors
    )


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        if absent := {"batches", "steps", "run", "saved", "numbers"} - facts.keys():
            raise ValueError(f"it lacks {', '.join(sorted(absent))}")
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / FACTS, error) from error
    return facts


def damaged(path: Path, why: Exception) -> TrainingError:
    """For a state that is not as it was written, or was written by something else."""
    return TrainingError(
        f"The run cannot go on: {path} is damaged, or no state of this program.",
        got=str(why)[:300],
        mend="bring the folder back from a copy; or begin anew in another --output_path, for a LoRA from the weights "
        "that were saved (--lora_checkpoint). Nothing was changed",
    )


def make_output(folder: Path) -> None:
    """Make the folder of a run. TrainingError if nothing can be written there: to be known before models are read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainingError(
            "Nothing can be written to --output_path.",
            got=f"{folder}: {error.strerror}",
            mend="choose a folder that is yours, or make room",
        ) from error
