"""One tiny checkpoint of five blocks, opened with any placement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

ON_DISK: dict[str, Any] = {
    "offload_dtype": "disk",
    "offload_device": "disk",
    "onload_dtype": "disk",
    "onload_device": "disk",
}
PARTS = ("transformer", "text_encoder", "vae")

Open = Callable[..., QwenImagePipeline]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("five"), layers=5)


@pytest.fixture(scope="session")
def open_placed(folder: Path) -> Open:
    def opened(
        model: Path | None = None,
        *,
        stay: int | None = None,
        vram_limit: float | None = None,
        **placement: Any,
    ) -> QwenImagePipeline:
        """`stay` blocks of each component are prepared, instead of as many as a limit lets stay."""
        model = model or folder
        pipe = QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=model / part, **placement) for part in PARTS],
            tokenizer_config=ModelConfig(path=model / "tokenizer"),
            device="cpu",
            vram_limit=vram_limit,
        )
        for several in pipe.components.values() if stay is not None else ():
            several[0].budget = lambda component: min(stay or 0, len(component.blocks.units))
        return pipe

    return opened


@pytest.fixture
def small() -> dict[str, Any]:
    return {
        "prompt": "a red circle",
        "height": 64,
        "width": 48,
        "num_inference_steps": 3,
        "seed": 1,
        "progress_bar_cmd": iter,
        "output_type": "latent",
    }
