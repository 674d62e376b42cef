"""`qwenimage memory`: the plan of a model, from headers or from what was published, with nothing loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwenimage_core import QwenImagePipeline
from qwenimage_core.cli.main import main

PUBLISHED_VALUES = 20_430_401_088  # of the transformer, 6.8 billion of them modulation


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["memory", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, without any model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(tmp_path))
    return tmp_path


def test_a_recipe_that_is_not_here_has_published_sizes(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = told(capsys, "--recipe", "qwen-image", "--device", "cuda")
    assert len(facts["notes"]) == 3 and all("published sizes" in note for note in facts["notes"])
    denoise = facts["memory"]["stages"][1]
    (transformer,) = (s for s in denoise["weights"] if s["component"] == "transformer")
    modulation = 60 * 2 * (3072 + 1) * 6 * 3072
    assert transformer["nbytes"] == 2 * (PUBLISHED_VALUES - modulation)
    assert not list(nowhere.iterdir()), "nothing was fetched"


def test_a_table_and_bars(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", "--recipe", "qwen-image", "--memory", "8gb", "--size", "1024x1024", "-o", "bars.png"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "of 60 blocks stay" in said and "limit 8.00 GiB" in said and "1024 x 1024" in said
    picture = Image.open("bars.png")
    assert picture.width > 500 and len(picture.getcolors(1 << 20)) > 5
    assert main(words) == 1
    assert "bars.png exists" in capsys.readouterr().err


def test_files_that_are_here_are_measured(
    folder: Path, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = told(capsys, "--model", str(folder), "--size", "64x48")
    assert facts["notes"] == []
    pipe = QwenImagePipeline.from_pretrained(str(folder), device="cpu")
    stages = pipe.keeper.stages(pipe.plans("x", height=48, width=64))
    expected = {share.component: share.nbytes for share in stages[1].shares}
    assert {s["component"]: s["nbytes"] for s in facts["memory"]["stages"][1]["weights"]} == expected


def test_work_follows_the_job(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(*words: str) -> list[int]:
        return [s["working"] for s in told(capsys, "--recipe", "qwen-image", *words)["memory"]["stages"]]

    one = work()
    assert work("--references", "2")[1] > 2.5 * one[1] > 0
    assert work("--pictures", "2")[1] > 1.5 * one[1]
    assert work("--tile-size", "64")[2] < one[2] / 5


@pytest.mark.parametrize("size", ["big", "100x100", "0x16", "64"])
def test_no_sizes(size: str, nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--size", size]) == 1
    assert "multiples of 16" in capsys.readouterr().err
