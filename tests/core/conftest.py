"""A tiny random checkpoint in hub layout, and a pipeline on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

SMALL = {"height": 64, "width": 48, "num_inference_steps": 3, "seed": 5, "progress_bar_cmd": iter}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def make_pipe(checkpoint: Path) -> Callable[..., QwenImagePipeline]:
    def make(*plugins: Any) -> QwenImagePipeline:
        return QwenImagePipeline.from_pretrained(str(checkpoint), torch_dtype=torch.float32, plugins=plugins)

    return make


@pytest.fixture(scope="session")
def pipe(make_pipe: Callable[..., QwenImagePipeline]) -> QwenImagePipeline:
    """Without plugins; tests leave it as they found it."""
    return make_pipe()


@pytest.fixture
def small() -> dict[str, Any]:
    """Request fields of a quick picture."""
    return dict(SMALL)
