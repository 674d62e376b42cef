"""Files appear whole or not at all, and with the mode that files have here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest
import torch

from qwenimage_core.adapters.files import write
from qwenimage_core.writing import whole_file


@pytest.fixture
def shared_folder() -> Iterator[None]:
    """As where a group works in one folder: what is not forbidden there is allowed."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("shared_folder")
def test_a_file_has_the_mode_of_new_files(tmp_path: Path) -> None:
    plain, weights = tmp_path / "plain.txt", tmp_path / "lora.safetensors"
    plain.write_text("x")
    write(weights, {"x": torch.zeros(1)}, {})
    assert S_IMODE(weights.stat().st_mode) == S_IMODE(plain.stat().st_mode) == 0o664


def test_what_was_there_stays_until_the_whole_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(path) as beside:
        beside.write_text("ne")
        raise OSError("the disk is full")
    assert path.read_text() == "old"
    with whole_file(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "new"
