"""The forecast of a run: its figures against what the run then has, and that it writes nothing."""

from __future__ import annotations

import json

import pytest
import typer

from qwenimage_core.errors import RequestError
from qwenimage_training import commands
from qwenimage_training.dry_run import forecast
from qwenimage_training.run import make_trainer


def made(make_arguments, measure: bool = False, **options):
    return forecast(make_trainer(make_arguments(**options)), measure=measure)


def test_steps_are_those_of_the_run(make_arguments) -> None:
    found = made(make_arguments, num_epochs=3, batch_size=2, gradient_accumulation_steps=2, dataset_repeat=3)
    assert (found.rows, found.batches_an_epoch, found.steps) == (18, 9, 14)


def test_memory_of_trained_weights_is_what_they_take(make_arguments) -> None:
    """Full weights: gradient as large as the weights, two moments, an average; of bfloat16 weights, float32 copies."""
    options = {"lora": False, "trainable_models": "dit", "ema_decay": 0.9}
    whole = made(make_arguments, **options)
    assert whole.gradients == 4 * whole.trained_parameters
    assert whole.optimizer == 8 * whole.trained_parameters
    assert whole.average == 4 * whole.trained_parameters
    assert whole.weights > whole.gradients  # the encoders' as well
    half = made(make_arguments, **options, mixed_precision="bf16")
    assert half.gradients == 2 * whole.trained_parameters
    assert half.optimizer == 12 * whole.trained_parameters


def test_the_estimate_of_activations_is_near_what_is_kept(make_arguments) -> None:
    options = {"lora": False, "trainable_models": "dit", "height": 128, "width": 128}
    estimate, found = (made(make_arguments, measure=m, **options).activations for m in (False, True))
    assert 0.5 < estimate / found < 2
    again = made(make_arguments, measure=True, use_gradient_checkpointing=True, **options).activations
    assert again < found


def test_measuring_gives_time_and_writes_nothing(make_arguments) -> None:
    arguments = make_arguments(num_epochs=2)
    found = forecast(make_trainer(arguments), measure=True)
    assert found.seconds == pytest.approx(found.seconds_a_step * 12)
    assert found.seconds_a_step > 0
    assert not arguments.output.exists()


def test_the_command(make_arguments, folder, data, tmp_path, capsys) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    commands(app)
    words = ["train", "--model", str(folder), "--dataset_base_path", str(data), "--mode", "lora"]
    words += ["--output_path", str(tmp_path / "out")]
    app([*words, "--dry_run", "--json", "--no_measure"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["seconds"], found["measured"]) == (30, None, False)
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    assert found["memory"] == sum(found[part] for part in parts)
    app([*words, "--dry_run"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "memory: optimizer" in shown
    assert "s a step" in shown
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match="--dry_run"):
        app([*words, "--json"], standalone_mode=False)


def test_both_commands_are_in_the_command_line() -> None:
    app = typer.Typer()
    commands(app)
    assert {"train"} <= {command.name for command in app.registered_commands}
    assert {"dataset"} <= {group.name for group in app.registered_groups}
