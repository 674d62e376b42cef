"""A pipeline on a tiny random model with three ControlNets: edges (0), inpaint (1), depth (2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_blockwise_controlnet
from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

HEIGHT, WIDTH = 64, 48
CHANNELS = (64, 68, 64)


def random_controlnet(path: Path, seed: int, channels: int = 64, blocks: int = 2, width: int = 64) -> Path:
    """A tiny ControlNet that adds as much as the blocks themselves."""
    net = new_controlnet(blocks=blocks, channels=channels, width=width)
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in net.named_parameters():
        scale = 0.1 if tensor.ndim == 1 else tensor.shape[1] ** -0.5
        tensor.data = scale * torch.randn(tensor.shape, generator=draw) + ("rms" in name)
    return save_controlnet(net, path)


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


def mask(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """White in the middle."""
    drawn = Image.new("L", size)
    drawn.paste(255, (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4))
    return drawn


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "base")
    for number, channels in enumerate(CHANNELS):
        random_controlnet(folder.parent / f"controlnet-{number}.safetensors", number, channels)
    return folder


@pytest.fixture(scope="session")
def open_pipe(folder: Path) -> Callable[..., QwenImagePipeline]:
    """A pipeline with these ControlNet files."""

    def opened(*controlnets: Path, plugins: Sequence[Any] = ()) -> QwenImagePipeline:
        parts = [folder / name for name in ("transformer", "text_encoder", "vae")]
        return QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=path) for path in (*parts, *controlnets)],
            tokenizer_config=ModelConfig(path=folder / "tokenizer"),
            torch_dtype=torch.float32,
            device="cpu",
            plugins=[qwenimage_blockwise_controlnet, *plugins],
        )

    return opened


@pytest.fixture(scope="session")
def pipe(folder: Path, open_pipe: Callable[..., QwenImagePipeline]) -> QwenImagePipeline:
    return open_pipe(*(folder.parent / f"controlnet-{i}.safetensors" for i in range(len(CHANNELS))))


@pytest.fixture
def small() -> dict[str, Any]:
    """Request fields of a quick picture."""
    return {
        "prompt": "a red circle",
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 4,
        "seed": 3,
        "progress_bar_cmd": iter,
        "output_type": "latent",
    }
