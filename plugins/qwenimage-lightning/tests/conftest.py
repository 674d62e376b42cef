"""Tiny random models, and Lightning files for them under their published names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_lightning
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

MODULES = ("attn.to_q", "attn.to_out.0", "attn.add_v_proj", "img_mlp.net.2", "txt_mlp.net.0.proj")


def lightning_lora(
    path: Path, *, blocks: int = 2, width: int = 64, metadata: dict[str, str] | None = None
) -> Path:
    """A LoRA with the keys of the published ones, rank 4, alpha 2."""
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for block in range(blocks):
        for module in MODULES:
            outer = 4 * width if module.endswith("proj") and "mlp" in module else width
            inner = 4 * width if module == "img_mlp.net.2" else width
            name = f"transformer_blocks.{block}.{module}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, inner, generator=draw) * inner**-0.5
            tensors[f"{name}.lora_up.weight"] = torch.randn(outer, 4, generator=draw)
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="session")
def open_pipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., QwenImagePipeline]:
    """A pipeline on a tiny model of a variant; each is written once."""
    root = tmp_path_factory.mktemp("models")

    def opened(variant: Any = "base") -> QwenImagePipeline:
        folder = root / variant
        if not folder.is_dir():
            write_tiny_checkpoint(folder, variant=variant)
        return QwenImagePipeline.from_pretrained(
            str(folder), torch_dtype=torch.float32, device="cpu", plugins=[qwenimage_lightning]
        )

    return opened


@pytest.fixture(scope="session")
def pipe(open_pipe: Callable[..., QwenImagePipeline]) -> QwenImagePipeline:
    return open_pipe()


@pytest.fixture
def small() -> dict[str, Any]:
    """Request fields of a quick picture."""
    return {
        "prompt": "a red circle",
        "height": 64,
        "width": 48,
        "seed": 3,
        "progress_bar_cmd": iter,
        "output_type": "latent",
    }


@pytest.fixture
def four_steps(tmp_path: Path) -> Path:
    return lightning_lora(tmp_path / "Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors")
