"""`torchrun -m qwenimage_core generate`: the files that one process writes, and an end to all when one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenimage_core.cli.main import main
from qwenimage_core.testing import write_tiny_checkpoint

SMALL = ("--height", "48", "--width", "32", "--num-inference-steps", "2", "--seed", "3", "--no-plugins")
PROMPTS = ("--prompt", "a red circle", "--prompt", "a blue square, large", "--prompt", "a cat")

FAILS_IN_ONE = """
import os
from pydantic import Field
from qwenimage_core.hooks import hookimpl
from qwenimage_core.request import FieldsModel

HOOK_API = ">=1.0,<2"

class Fields(FieldsModel):
    stumble: float | None = Field(None, description="whether to")

@hookimpl
def request_fields():
    return Fields

@hookimpl
def decode(ctx, latents):
    if os.environ["RANK"] == "1":
        raise RuntimeError("the second process stumbles")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_prompts_become_the_files_that_one_process_writes(
    torchrun, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, one = tmp_path / "several", tmp_path / "one"
    words = ["generate", *PROMPTS, "--model", str(model), "--device", "cpu", *SMALL]
    for folder in (several, one):
        folder.mkdir()
        (folder / "qwenimage-0002.png").write_bytes(b"was here before")
    monkeypatch.chdir(one)
    assert main(words) == 0
    done = torchrun("-m", "qwenimage_core", *words, cwd=several)
    assert done.returncode == 0, done.stderr
    assert len(files(one)) == 4
    assert files(several) == files(one)
    assert done.stdout.splitlines() == [f"qwenimage-{n:04}.png" for n in (1, 3, 4)]


def test_pictures_of_one_prompt_are_shared_out_and_told_once(torchrun, model: Path, tmp_path: Path) -> None:
    words = ("generate", "a cat", "--num-images-per-prompt", "3", "--model", model, "--device", "cpu", *SMALL)
    done = torchrun("-m", "qwenimage_core", *words, "--json", "-o", "cat.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["pictures"]
    assert [(each["path"], each["seed"]) for each in told] == [(f"cat-{n}.png", n + 2) for n in (1, 2, 3)]
    assert sorted(files(tmp_path)) == ["cat-1.png", "cat-2.png", "cat-3.png"]


def test_an_error_in_one_process_ends_all(two_alone, model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "stumbles.py"
    plugin.write_text(FAILS_IN_ONE)
    work = tmp_path / "work"
    work.mkdir()
    words = ["generate", *PROMPTS, "--model", model, "--device", "cpu", *SMALL[:-1], "--stumble", 1]
    first, second = two_alone("-m", "qwenimage_core", *words, "--plugin", plugin, cwd=work)
    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert "the second process stumbles" in second.stderr and "in process 1 of 0..1" in second.stderr
    assert "Another process of this run has ended" in first.stderr and "in process 0 of" in first.stderr
    assert files(work) == {} and first.stdout == second.stdout == ""


def test_a_process_that_is_alone_is_told_how_to_start_several(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a cat", "--parallel", "tensor", "--model", str(model), *SMALL]) == 1
    assert "torchrun --nproc_per_node 2" in capsys.readouterr().err


def test_again_is_for_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "cat.png").write_bytes(b"")
    assert main(["again", str(tmp_path / "cat.png")]) == 1
    assert "without torchrun" in capsys.readouterr().err
