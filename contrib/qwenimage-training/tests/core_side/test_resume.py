"""A run that is killed and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from qwenimage_training.checkpoint import State, save_state, states
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import make_cache, run

CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.run import make_cache, run
run(TrainingArguments(**json.loads(sys.argv[1])))
"""
RUN = {
    "num_epochs": 4,
    "save_steps": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "ema_decay": 0.9,
    "caption_dropout": 0.3,
    "lora_alpha": 6,
}


def start(arguments) -> subprocess.Popen[bytes]:
    values = arguments.model_dump(mode="json", exclude_unset=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(values)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def steps_logged(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(states(folder)[-1] / "state.safetensors")


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_killed_at_several_steps_and_resumed_it_ends_with_the_same_bits(
    make_arguments, tmp_path: Path
) -> None:
    whole = make_arguments(**RUN, output_path=str(tmp_path / "whole"))
    assert start(whole).wait() == 0
    broken = tmp_path / "broken"
    for kill_at in (3, 8):
        child = start(make_arguments(**RUN, output_path=str(broken), resume=bool(states(broken))))
        while steps_logged(broken) < kill_at and child.poll() is None:
            time.sleep(0.001)
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    last = start(make_arguments(**RUN, output_path=str(broken), resume=True))
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()[-2000:]
    assert_same_bits(final_state(tmp_path / "whole"), final_state(broken))
    for name in ("step-22.safetensors", "step-24.safetensors"):
        assert_same_bits(load_file(broken / name), load_file(tmp_path / "whole" / name))
    lines = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))


@pytest.mark.parametrize("kind", ["lora", "full-bf16"])
def test_a_run_in_two_parts_equals_one(make_arguments, tmp_path: Path, kind: str) -> None:
    options = (
        dict(RUN)
        if kind == "lora"
        else {
            "lora": False,
            "trainable_models": "dit",
            "mixed_precision": "bf16",
            "num_epochs": 2,
            "learning_rate": 1e-3,
        }
    )
    run(make_arguments(**options, output_path=str(tmp_path / "whole")))
    parts = str(tmp_path / "parts")
    # the schedule belongs to the whole run, so the first part has its length and is stopped
    trainer_arguments = make_arguments(**options, output_path=parts)
    with pytest.raises(_Stopped):
        run(trainer_arguments, callbacks=[_StopAfter(5)])
    run(make_arguments(**options, output_path=parts, resume=True))
    assert_same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


class _Stopped(Exception):
    pass


class _StopAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, report, trainer) -> None:
        if report.step > self.step and trainer.saved:
            raise _Stopped

    def on_save(self, files, trainer) -> None: ...
    def on_end(self, trainer) -> None: ...


def test_what_a_killed_run_left_half_written_is_cleared(make_arguments) -> None:
    arguments = make_arguments(max_train_steps=1)
    (arguments.output / ".state-2.123.partial").mkdir(parents=True)
    (arguments.output / ".epoch-0.safetensors.123.partial").write_bytes(b"half")
    run(arguments)
    assert [p.name for p in arguments.output.iterdir() if p.name.startswith(".")] == []


def test_a_changed_run_is_not_resumed(make_arguments) -> None:
    run(make_arguments())
    with pytest.raises(TrainingError, match="seed"):
        run(make_arguments(seed=2, resume=True))


def test_there_must_be_something_to_resume(make_arguments) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        run(make_arguments(resume=True))


class _FullDisk:
    """From a step on no file can grow beyond a few kilobytes, as if the disk were full."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, report, trainer) -> None:
        if report.step == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    def on_save(self, files, trainer) -> None: ...
    def on_end(self, trainer) -> None: ...


def test_a_full_disk_loses_nothing_and_the_run_goes_on(make_arguments, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = make_arguments(**RUN)
    try:
        with pytest.raises(TrainingError, match="cannot be saved"):
            run(arguments, callbacks=[_FullDisk(3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in states(arguments.output)] == ["state-4"]
    assert sorted(p.name for p in arguments.output.iterdir() if p.name.startswith((".", "step"))) == [
        "step-2.safetensors",
        "step-4.safetensors",
    ]
    run(make_arguments(**RUN, resume=True))
    run(make_arguments(**RUN, output_path=str(tmp_path / "whole")))
    assert_same_bits(final_state(tmp_path / "whole"), final_state(arguments.output))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.safetensors", b"\x40\x00"),
        ("state.safetensors", None),
        ("state.safetensors", save({"weights/of.another.model": torch.zeros(1)})),
        ("state.json", b'{"batches": 4'),
        ("state.json", b'{"batches": 4}'),
        ("state.json", b"[]"),
        ("state.json", None),
    ],
    ids=["cut", "no tensors", "foreign tensors", "half", "foreign", "no object", "no facts"],
)
def test_a_damaged_or_foreign_state_is_named_and_nothing_is_lost(make_arguments, file, content) -> None:
    arguments = make_arguments(max_train_steps=2, save_steps=2)
    run(arguments)
    path = states(arguments.output)[-1] / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = contents(arguments.output)
    with pytest.raises(TrainingError, match="damaged, or no state") as caught:
        run(make_arguments(max_train_steps=4, save_steps=2, resume=True))
    assert str(path.parent) in str(caught.value)
    assert contents(arguments.output) == before


def test_what_could_not_be_saved_says_whether_there_is_something_to_resume(make_arguments, tmp_path) -> None:
    full = tmp_path / "full"
    full.write_text("a file where a folder should be")
    with pytest.raises(TrainingError) as caught:
        save_state(full, State(1, 1, {}))
    assert "run the command again" in str(caught.value)
    arguments = make_arguments(max_train_steps=1, save_steps=1)
    run(arguments)
    (arguments.output / ".state-2.partial").write_text("in the way")
    with pytest.raises(TrainingError) as caught:
        save_state(arguments.output, State(2, 2, {}))
    assert "add --resume" in str(caught.value)
    assert [p.name for p in states(arguments.output)] == ["state-1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_over_stays_as_it_is(make_arguments) -> None:
    arguments = make_arguments(max_train_steps=2, save_steps=2)
    run(arguments)
    before = contents(arguments.output)
    run(make_arguments(max_train_steps=2, save_steps=2, resume=True))
    after = contents(arguments.output)
    assert {n for n in after if after[n] != before.get(n)} == {
        str(arguments.output / "training_args.json")  # it says so: resume
    }


@pytest.mark.parametrize("task", ["sft", "sft:data_process"])
def test_an_output_that_cannot_be_written_is_said_before_a_model_is_read(
    make_arguments, tmp_path, task
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = make_arguments(output_path=str(tmp_path / "file" / "out"), model="nobody", task=task)
    with pytest.raises(TrainingError, match="--output_path"):
        make_cache(arguments) if arguments.stage else run(arguments)
