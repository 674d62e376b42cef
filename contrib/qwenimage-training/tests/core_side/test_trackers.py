"""What is logged elsewhere can be read back there. Each log is tried where its package is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenimage_training.callbacks import Callback, StepReport
from qwenimage_training.run import make_trainer, run
from qwenimage_training.trainer import Trainer

BLOCK = 32 * 1024
CHILD = """
import json, sys
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.run import run
run(TrainingArguments(**json.loads(sys.argv[1])))
from trackio.sqlite_storage import SQLiteStorage
[name] = SQLiteStorage.get_runs("mine")
print(json.dumps(SQLiteStorage.get_logs("mine", name), default=str))
"""
LOOK = {
    "validation_steps": 2,
    "validation_prompts": "a cat",
    "validation_rows": "2",
    "validation_inference_steps": 1,
    "validation_cfg_scale": 1.0,
    "max_train_steps": 2,
}


def logged(folder: Path, name: str = "log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_tensorboard(make_arguments) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = make_arguments(**LOOK, log_with="tensorboard")
    run(arguments)
    events = EventAccumulator(str(arguments.output / "tensorboard")).Reload()
    for name in ("loss", "grad_norm", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name])) for line in logged(arguments.output)]
    [judged] = events.Scalars("validation_loss")
    assert judged.value == pytest.approx(logged(arguments.output, "validation.jsonl")[0]["loss"])
    [sheet] = events.Images("validation")
    assert (sheet.step, sheet.encoded_image_string[:4]) == (2, b"\x89PNG")
    [options] = events.Tensors("options/text_summary")
    assert b"max_train_steps: 2" in options.tensor_proto.string_val[0]


def test_a_run_that_is_stopped_loses_no_step(make_arguments) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stop(Callback):
        def on_step(self, report: StepReport, trainer: Trainer) -> None:
            if report.step == 2:
                raise KeyboardInterrupt

    arguments = make_arguments(log_with="tensorboard")
    trainer = make_trainer(arguments)
    trainer.callbacks = (*trainer.callbacks, Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    events = EventAccumulator(str(arguments.output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def records(file: Path) -> Iterator[bytes]:
    """What is in a file of wandb: 7 bytes of head, then a log as LevelDB has it. In blocks of 32 KiB, pieces of 4 bytes
    of checksum, 2 of length, 1 of kind (whole, first, middle, last), content; less than 7 bytes at an end are filling.
    """
    content, place, open_record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        open_record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield open_record
            open_record = b""


def test_wandb(make_arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    arguments = make_arguments(**LOOK, log_with="wandb")
    run(arguments)
    assert wandb.run is None, "closed at the end"
    [file] = (arguments.output / "wandb").glob("offline-run-*/*.wandb")
    history: dict[int, dict] = {}
    projects = []
    for content in records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            projects.append(record.run.project)
        values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        history.setdefault(values.get("_step"), {}).update(values)
    assert set(projects) == {"mine"}
    for line in logged(arguments.output):
        assert history[line["step"]]["loss"] == pytest.approx(line["loss"])
    judged = logged(arguments.output, "validation.jsonl")[0]["loss"]
    assert history[2]["validation_loss"] == pytest.approx(judged)
    assert list(file.parent.glob("files/media/images/validation_*.png"))


def test_trackio(make_arguments, tmp_path: Path) -> None:
    """In a process of its own: trackio decides at its import where its database is."""
    pytest.importorskip("trackio")
    arguments = make_arguments(**LOOK, log_with="trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "TRACKIO_PROJECT": "mine"}
    words = json.dumps(arguments.model_dump(mode="json", exclude_unset=True))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, words], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    lines = logged(arguments.output)
    assert [(v["step"], v["loss"]) for v in found if "grad_norm" in v] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    [judged] = [v["validation_loss"] for v in found if "validation_loss" in v]
    assert judged == pytest.approx(logged(arguments.output, "validation.jsonl")[0]["loss"])
    assert list((tmp_path / "trackio" / "media").rglob("*.png"))
