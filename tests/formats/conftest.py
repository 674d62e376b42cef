"""A tiny model whose transformer is written in a format, and the same with the decoded weights in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.formats.writers import FORMATS

PARTS = ("transformer", "text_encoder", "vae")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("three"), layers=3)


@pytest.fixture(scope="session")
def rewrite(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """(folder in the format, folder with what it decodes to); made once for each format and component."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def rewritten(name: str, part: str = "transformer") -> tuple[Path, Path]:
        if (name, part) not in made:
            base = tmp_path_factory.mktemp("format")
            stored, dense = (Path(shutil.copytree(tiny, base / kind)) for kind in ("stored", "dense"))
            (file,) = (stored / part).glob("*.safetensors")
            tensors = load_file(file)
            file.unlink()
            save_file(FORMATS[name](tensors, file.with_suffix("")), dense / part / file.name)
            made[name, part] = stored, dense
        return made[name, part]

    return rewritten


@pytest.fixture(scope="session")
def draw() -> Callable[..., torch.Tensor]:
    """A picture's latents, drawn by a model opened anew."""

    def drawn(
        folder: Path, *, stay: int | None = None, lora: Path | None = None, **placement: Any
    ) -> torch.Tensor:
        pipe = open_model(folder, **placement)
        for several in pipe.components.values() if stay is not None else ():
            several[0].budget = lambda component: min(stay or 0, len(component.blocks.units))
        if lora is not None:
            pipe.load_lora(lora)
        return pipe("a red circle", height=32, width=48, num_inference_steps=2, seed=1, **QUIET)

    return drawn


QUIET: dict[str, Any] = {"progress_bar_cmd": iter, "output_type": "latent"}


def open_model(folder: Path, **placement: Any) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=folder / part, **placement) for part in PARTS],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        device="cpu",
    )
