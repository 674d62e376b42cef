"""The tiny hub, written once; commands and pipelines find it by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from .hub import write_hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def offline(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the tiny hub is all there is."""
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(hub))
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "True")
    monkeypatch.chdir(tmp_path)
    return tmp_path
