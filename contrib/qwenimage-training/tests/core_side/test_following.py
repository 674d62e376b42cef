"""What follows a run: pictures and losses on the way that change nothing, the log's figures, trackers, curves."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qwenimage_core.errors import RequestError
from qwenimage_training.callbacks import by_level
from qwenimage_training.checkpoint import states
from qwenimage_training.curves import mean_by_level, running_mean
from qwenimage_training.previews import averaged, read_prompts
from qwenimage_training.run import make_trainer, run

LOOK = {
    "validation_steps": 2,
    "validation_prompts": "a cat on a mat",
    "validation_inference_steps": 2,
}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(states(folder)[-1].glob("*.safetensors")))


@pytest.mark.parametrize("kind", ["lora", "average", "full"])
def test_training_goes_on_to_the_bit_as_if_nobody_had_looked(
    make_arguments, tmp_path: Path, kind: str
) -> None:
    options: dict = {"num_epochs": 2, "learning_rate": 1e-3, "validation_rows": "2"}
    options |= {"average": {"ema_decay": 0.9}, "full": {"lora": False, "trainable_models": "dit"}}.get(
        kind, {}
    )
    run(make_arguments(**{**options, **LOOK}, output_path=str(tmp_path / "looked")))
    never = {**LOOK, "validation_steps": 10_000}
    run(make_arguments(**{**options, **never}, output_path=str(tmp_path / "blind")))
    one, other = final(tmp_path / "looked"), final(tmp_path / "blind")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert [line["step"] for line in lines(tmp_path / "looked" / "validation.jsonl")] == [2, 4, 6, 8]
    assert not (tmp_path / "blind" / "validation.jsonl").exists()
    assert len(list((tmp_path / "looked" / "validation").glob("step-*.png"))) == 4


def test_pictures_follow_the_weights_and_seeds_stay(make_arguments, tmp_path: Path) -> None:
    """At a learning rate of almost nothing all sheets are alike but for their title; at a large one they differ."""
    sheets = {}
    for rate in (1e-30, 1e-2):
        arguments = make_arguments(**LOOK, learning_rate=rate, output_path=str(tmp_path / str(rate)))
        run(arguments)
        files = [arguments.output / "validation" / f"step-{n}.png" for n in (2, 6)]
        sheets[rate] = [np.asarray(Image.open(file))[24:] for file in files]
    assert np.array_equal(*sheets[1e-30])
    assert not np.array_equal(*sheets[1e-2])


def test_the_loss_of_rows_held_out_is_the_same_for_the_same_weights(make_arguments) -> None:
    arguments = make_arguments(validation_steps=1, validation_rows="2", learning_rate=1e-30)
    trainer = run(arguments)
    losses = [line["loss"] for line in lines(arguments.output / "validation.jsonl")]
    assert len(losses) == 4  # rows that are left
    assert len(set(losses)) == 1
    assert len(trainer.dataset) == 4


def test_a_metadata_file_can_be_held_out_instead(make_arguments, data: Path, tmp_path: Path) -> None:
    other = data / "held.json"
    other.write_text(json.dumps(json.loads((data / "metadata.json").read_text())[:1]))
    arguments = make_arguments(validation_steps=3, validation_rows=str(other), max_train_steps=3)
    trainer = run(arguments)
    assert len(trainer.dataset) == 6
    assert len(lines(arguments.output / "validation.jsonl")) == 1


def test_averaged_weights_are_in_for_the_look_alone(make_arguments) -> None:
    trainer = make_trainer(make_arguments(ema_decay=0.5))
    parameters = trainer.engine.weights.parameters
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for value in trainer.engine.average.values.values():
        value.fill_(7.0)
    with averaged(trainer):
        assert all(bool((p == 7.0).all()) for p in parameters.values())
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_the_log_has_speed_and_loss_by_noise_level(make_arguments) -> None:
    arguments = make_arguments(batch_size=3)
    run(arguments)
    for line in lines(arguments.output / "log.jsonl"):
        assert line["samples_per_second"] == pytest.approx(line["samples"] / line["seconds"], rel=0.05)
        assert line["loss_by_level"]
        assert min(line["loss_by_level"].values()) <= line["loss"] * (1 + 1e-6)
        assert max(line["loss_by_level"].values()) >= line["loss"] * (1 - 1e-6)
    assert Image.open(arguments.output / "curves.png").size == (920, 300)


def test_levels_are_sorted_into_tenths() -> None:
    assert by_level([0.05, 0.31, 0.39, 1.0], [1.0, 2.0, 4.0, 5.0]) == {"0.0": 1.0, "0.3": 3.0, "0.9": 5.0}
    assert by_level([], [1.0]) == {}
    assert running_mean([(1, 2.0), (2, 4.0), (3, 6.0)], 2) == [(1, 2.0), (2, 3.0), (3, 5.0)]
    log = [{"loss_by_level": {"0.3": 1.0}}, {"loss_by_level": {"0.3": 3.0, "0.1": 5.0}}]
    assert mean_by_level(log) == [(pytest.approx(0.15), 5.0), (pytest.approx(0.35), 2.0)]


def test_remembered_samples_change_nothing(make_arguments, tmp_path: Path) -> None:
    """With memory, with none, and with room for some: the same losses; with memory, files are read once."""
    found = {}
    for gigabytes in (1.0, 0.0, 2e-5):
        arguments = make_arguments(
            num_epochs=3,
            caption_dropout=0.4,
            cache_encoded=gigabytes,
            output_path=str(tmp_path / str(gigabytes)),
        )
        trainer = make_trainer(arguments)
        reads: list[int] = []
        read = trainer.dataset.reader.read
        trainer.dataset.reader.read = lambda record, index, read=read, reads=reads: (
            reads.append(index),
            read(record, index),
        )[1]
        trainer.train()
        found[gigabytes] = [line["loss"] for line in lines(arguments.output / "log.jsonl")], len(reads)
        assert trainer.module.remembered.bytes <= gigabytes * 1e9
    assert found[1.0][0] == found[0.0][0] == found[2e-5][0]
    assert found[1.0][1] < found[2e-5][1] <= found[0.0][1] == 18


def test_what_a_trained_encoder_gives_is_not_remembered(make_arguments) -> None:
    trainer = run(
        make_arguments(lora=False, trainable_models="text_encoder", validation_steps=2, validation_rows="1")
    )
    assert trainer.module.remembered.bytes == 0


def test_a_tracker_gets_every_step(make_arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict, int]] = []
    ended: list[bool] = []
    fake = types.ModuleType("trackio")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    fake.init = lambda project, config: logged.append((config, 0))  # type: ignore[attr-defined]
    fake.log = lambda values, step: logged.append((values, step))  # type: ignore[attr-defined]
    fake.finish = lambda: ended.append(True)  # type: ignore[attr-defined]
    fake.Image = lambda path: Path(path).name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run(make_arguments(**LOOK, log_with="trackio", max_train_steps=2))
    assert logged[0][0]["log_with"] == "trackio"
    assert [step for values, step in logged if "grad_norm" in values] == [1, 2]
    assert ({"validation": "step-2.png"}, 2) in logged
    assert ended == [True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"log_with": "tensorbord"}, "tensorboard, wandb, trackio"),
        ({"log_with": "wandb"}, r'pip install "qwenimage-training\[wandb\]"'),
        ({"validation_steps": 1, "validation_rows": "6"}, "leaves nothing to train"),
    ],
)
def test_what_cannot_follow_is_said_before_a_model_is_read(
    make_arguments, monkeypatch, options, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError, match=said):
        make_trainer(make_arguments(**options))


def test_prompts_are_a_text_or_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog \n")
    assert read_prompts(str(file)) == ("a cat", "a dog")
    assert read_prompts("a cat, and a dog") == ("a cat, and a dog",)


def test_when_to_look_and_at_what_belong_together(make_arguments) -> None:
    with pytest.raises(ValueError, match="give both sides"):
        make_arguments(validation_steps=3)
