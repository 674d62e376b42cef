"""A tiny model, small datasets, and the arguments of short runs on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_training.arguments import TrainingArguments

from .engine_runs import Runs
from .third_party import PLUGIN

MakeArguments = Callable[..., TrainingArguments]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of one size, with prompts of different lengths, and a picture beside each."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
        picture(100 + i).save(folder / f"side{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "a cat " + "on a mat " * i, "side_image": f"side{i}.png"})
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def make_arguments(folder: Path, data: Path, tmp_path: Path) -> MakeArguments:
    """Arguments of a short LoRA run; `lora=False` leaves the LoRA out."""
    return maker(folder, data, tmp_path)


@pytest.fixture(scope="module")
def runs(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by one process and by two that the tests of a module share."""
    place = tmp_path_factory.mktemp("runs")
    return Runs(maker(folder, data, place), folder, data, place)


def maker(folder: Path, data: Path, place: Path) -> MakeArguments:
    def make(*, lora: bool = True, **more: Any) -> TrainingArguments:
        values: dict[str, Any] = {
            "model": str(folder),
            "dataset_base_path": str(data),
            "output_path": str(place / "out"),
            "seed": 1,
        }
        if lora:
            values |= {
                "lora_base_model": "dit",
                "lora_target_modules": "to_q,to_v,img_mlp.net.2",
                "lora_rank": 4,
            }
        return TrainingArguments(**{**values, **more})

    return make


@pytest.fixture
def glance(tmp_path: Path) -> dict:
    """Options that train with the plugin: its file, its net's weights, and rows with its columns."""
    (tmp_path / "glance.py").write_text(PLUGIN)
    rows = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        row = {"image": f"{i}.png", "prompt": "a cat"}
        if i:  # rows may lack what others have
            row |= {"glance_image": f"{i}.png", "glance_weight": 0.5, "side_image": f"{i}.png"}
        rows.append(row)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    net = tmp_path / "net.safetensors"
    save_file({"glance_in.weight": torch.randn(64, 64) / 8, "glance_in.bias": torch.zeros(64)}, net)
    return {
        "plugin": [str(tmp_path / "glance.py")],
        "dataset_base_path": str(tmp_path),
        "dataset_metadata_path": str(tmp_path / "rows.json"),
        "data_file_keys": "image,glance_image,side_image",
        "extra_inputs": "glance_image,glance_weight,side_image",
        "net": net,
    }
