"""`--low-memory`: a recipe's low-memory form on the command line, written into the picture and taken up by `again`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qwenimage_core.cli.main import main
from qwenimage_core.picture_files import read_metadata

SMALL = ["--height", "32", "--width", "32", "--num-inference-steps", "2", "--seed", "3"]


@pytest.fixture
def picture(offline: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = offline / "low.png"
    assert main(["generate", "x", "--recipe", "qwen-image", "--low-memory", *SMALL, "-o", str(path)]) == 0
    return path


def test_again_takes_the_same_form(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["again", str(picture)]) == 0
    made = picture.with_name("low-again.png")
    assert read_metadata(made).model == read_metadata(picture).model
    assert read_metadata(made).model.low_memory
    assert Image.open(made).tobytes() == Image.open(picture).tobytes()


def test_again_elsewhere_than_on_a_recipe_is_refused(
    picture: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["again", str(picture), "--model", str(hub / "Qwen" / "Qwen-Image")]) == 1
    error = capsys.readouterr().err
    assert "Only a recipe has a low-memory form" in error and "recipe:NAME" in error
    assert main(["again", str(picture), "--model", "recipe:qwen-image"]) == 0


@pytest.mark.parametrize("command", ["generate", "explain"])
@pytest.mark.parametrize("model", [[], ["--model", "Qwen/Qwen-Image"]], ids=["default", "model"])
def test_without_a_recipe_it_is_refused(
    command: str, model: list[str], offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "x", "--low-memory", *model]) == 1
    error = capsys.readouterr().err
    assert "Only a recipe has a low-memory form" in error
    assert "give --recipe NAME with --low-memory, or leave --low-memory out" in error


def test_explain_opens_it_too(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "x", "--recipe", "qwen-image", "--low-memory", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "noise" in out and not err
