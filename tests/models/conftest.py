"""A small tokenizer of the Qwen2 form, as a hub folder."""

from pathlib import Path

import pytest

from qwenimage_core.testing.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tokenizer"
    write_tokenizer(folder)
    return folder
