"""The README's first command with the model that comes with the project, and the same picture again."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qwenimage_core.picture_files import read_metadata

TINY = Path(__file__).parents[2] / "contrib" / "qwenimage-tiny"


@pytest.fixture
def embedded(site, monkeypatch: pytest.MonkeyPatch) -> None:
    """qwenimage-tiny as pip installs it: its folder on the path, its model as an entry point."""
    monkeypatch.syspath_prepend(str(TINY))
    code = "from qwenimage_tiny import model_path\n"
    site("tiny", code, group="qwenimage.models", attribute=":model_path")


def test_the_first_command_and_again(run, embedded) -> None:
    done = run(
        "generate", "a red circle on a blue background", "-o", "circle.png", "--num-inference-steps", 4
    )
    assert (done.code, done.out) == (0, "circle.png\n"), done.err
    record = read_metadata("circle.png")
    assert (record.model.source, record.request["width"], record.request["height"]) == ("tiny", 128, 128)
    assert run("again", "circle.png").out == "circle-again.png\n"
    with Image.open("circle.png") as first, Image.open("circle-again.png") as second:
        assert first.size == (128, 128) and first.tobytes() == second.tobytes()


def test_it_is_listed_with_its_components(run, embedded) -> None:
    (tiny,) = [m for m in run("models", "list", "--json").json["models"] if m["name"] == "tiny"]
    assert {c["kind"] for c in tiny["components"]} == {"transformer", "text_encoder", "vae"}
    assert sum(c["bytes"] for c in tiny["components"]) <= 15_000_000  # what its wheel may hold
