"""The commands of docs/training-arguments.md, in order and in one folder, on tiny files in the layout of the hub."""

from __future__ import annotations

import inspect
import json
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from qwenimage_core.cli.main import main
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.cli import train

from .test_models_page import table
from .test_training import picture

ROOT = Path(__file__).parents[2]
PAGE = runpy.run_path(str(ROOT / "docs" / "make_training_arguments.py"))
PLUGIN = """
from qwenimage_core import hookimpl
NAME = "mine"

@hookimpl
def recipes():
    return []
"""
COLUMNS: dict[str, Any] = {
    "context_image": "context.png",
    "blockwise_controlnet_image": "control.png",
    "num_inference_steps": 2,
    "rand_device": "cpu",
    "cfg_scale": 1,
}


def run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell would, in this process: parts joined by &&, and > FILE."""
    for part in " ".join(command.split()).split(" && "):
        program, *words = shlex.split(part)
        assert program == "qwenimage"
        target = words.pop() if words[-2:-1] == [">"] else None
        capsys.readouterr()
        assert main([word for word in words if word != ">"]) == 0, part
        if target is not None:
            Path(target).write_text(capsys.readouterr().out)


def test_the_commands_run(hub: Path, offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = offline / "data"
    data.mkdir()
    rows = [
        {"image": picture(data, "a" * i + ".png"), "prompt": f"a cat {i}", "seed": i, **COLUMNS}
        for i in range(1, 5)
    ]
    for name in ("context.png", "control.png"):
        picture(data, name)
    (data / "metadata.json").write_text(json.dumps(rows))
    (offline / "plugin.py").write_text(PLUGIN)
    write_tiny_checkpoint(offline / "models", variant="edit")
    for title, command in {**PAGE["COMMANDS"], **PAGE["MODES"]}.items():
        if title in PAGE["ELSEWHERE"]:
            assert (ROOT / PAGE["ELSEWHERE"][title]).is_file()
        else:
            run(command, capsys)
    made = {path.parent.name for path in (offline / "out").glob("*/*.safetensors")}
    shown = {title for title, command in PAGE["COMMANDS"].items() if "--output_path out/" in command}
    assert len(made) >= len(shown - set(PAGE["ELSEWHERE"]) - {"resume"})
    assert (offline / "drawn-beside.png").is_file()
    assert (offline / "sheet.png").is_file()


def test_every_argument_is_shown() -> None:
    """The script ends with an error for an argument that no command has; here: that none is missing in the table."""
    own = [
        p.annotation.__metadata__[0].default
        for p in inspect.signature(train, eval_str=True).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    shown = [row[0].strip("`") for row in PAGE["arguments"]()]
    assert shown == [*(f"--{name}" for name in TrainingArguments.model_fields), *own]


def test_the_rows_with_a_recipe_are_rows_of_the_family() -> None:
    """Which test_training.py runs: train, save, load, draw."""
    commands = {name: cells for name, *cells in table("Training")}
    for _, name, mode in PAGE["RECIPE_ROWS"]:
        command = commands[name][0 if mode == "full" else 1]
        assert command == f"qwenimage train --recipe {name} --mode {mode}"


def test_a_misspelt_option_is_told_as_options_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--learning_rat", "1"]) == 2
    assert "did you mean --learning_rate?" in capsys.readouterr().err
