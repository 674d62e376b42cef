"""Every file that i2L needs, tiny and random, in the layout of the hub; and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import qwenimage_i2l
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

DEPTH, WIDTH, TEXT_WIDTH = 2, 64, 48  # of the tiny transformer and text encoder
SIGLIP2_WIDTH, DINOV3_WIDTH = 64, 128
GROUPS = (
    {"attn.to_q": (1, 1), "attn.to_k": (1, 1), "attn.to_v": (1, 1), "attn.to_out.0": (1, 1)},
    {"img_mlp.net.2": (4, 1), "img_mod.1": (1, 6)},
    {
        "attn.add_q_proj": (1, 1),
        "attn.add_k_proj": (1, 1),
        "attn.add_v_proj": (1, 1),
        "attn.to_add_out": (1, 1),
    },
    {"txt_mlp.net.2": (4, 1), "txt_mod.1": (1, 6)},
)  # in and out of each layer, in widths
LAYERS = [f"transformer_blocks.{n}.{name}" for group in GROUPS for n in range(DEPTH) for name in group]


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=draw) / s[-1] ** 0.5 for name, s in shapes.items()}


def network_shapes(
    tokens: int = 0,
    *,
    depth: int = DEPTH,
    width: int = WIDTH,
    embedding: int = SIGLIP2_WIDTH + DINOV3_WIDTH,
    compressed: int = 8,
    middle: int = 3,
    text_width: int = TEXT_WIDTH,
) -> dict[str, tuple[int, ...]]:
    """A hypernetwork of rank 4 as published, by default tiny."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(depth * len(GROUPS)):
        for j, (inputs, outputs) in enumerate(GROUPS[k // depth].values()):
            layer = f"blocks.{k}.layers.{j}"
            for side, features in (("a", inputs), ("b", outputs)):
                shapes[f"{layer}.proj_{side}.proj_in.weight"] = (compressed, embedding)
                shapes[f"{layer}.proj_{side}.proj_out.weight"] = (4 * features * width, compressed)
        if tokens:
            shapes[f"blocks.{k}.proj_residual.proj_in.weight"] = (middle, text_width)
            shapes[f"blocks.{k}.proj_residual.proj_out.weight"] = (compressed, tokens * middle)
    return shapes


def encoder_weights() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """SigLIP2 and DINOv3 under the names of the published files."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    shared: dict[str, Any] = {"num_hidden_layers": 2, "patch_size": 16}
    siglip2 = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=SIGLIP2_WIDTH, intermediate_size=96, image_size=48, num_attention_heads=16, **shared
        )
    )
    dinov3 = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=DINOV3_WIDTH,
            intermediate_size=96,
            num_attention_heads=32,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
            query_bias=False,
            value_bias=False,
            **shared,
        )
    )
    renamed = {name.replace("model.layer.", "layer."): value for name, value in dinov3.state_dict().items()}
    return _lively(siglip2.state_dict()), _lively(renamed)


def _lively(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices of unit gain, so that a picture makes a difference to what comes out."""
    return {
        name: torch.randn(w.shape) / w[0].numel() ** 0.5 if w.ndim > 1 and "norm" not in name else w
        for name, w in weights.items()
    }


def bias_weights(layers: list[str], rank: int = 2) -> dict[str, torch.Tensor]:
    sizes = {name: size for group in GROUPS for name, size in group.items()}
    shapes = {}
    for layer in layers:
        inputs, outputs = sizes[layer.split(".", 2)[2]]
        shapes[f"{layer}.lora_A.default.weight"] = (rank, inputs * WIDTH)
        shapes[f"{layer}.lora_B.default.weight"] = (outputs * WIDTH, rank)
    return random_weights(shapes, 9)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("hub")
    whole = write_tiny_checkpoint(base / "Qwen" / "Qwen-Image")
    shutil.copytree(whole / "processor", base / "Qwen" / "Qwen-Image-Edit" / "processor")
    studio = base / "DiffSynth-Studio"
    siglip2, dinov3 = encoder_weights()
    files = {
        "General-Image-Encoders/SigLIP2-G384/model": siglip2,
        "General-Image-Encoders/DINOv3-7B/model": dinov3,
        "Qwen-Image-i2L/Qwen-Image-i2L-Style": random_weights(network_shapes(), 1),
        "Qwen-Image-i2L/Qwen-Image-i2L-Coarse": random_weights(network_shapes(64 + 7), 2),
        "Qwen-Image-i2L/Qwen-Image-i2L-Fine": random_weights(network_shapes(37 * 37 + 7), 3),
        "Qwen-Image-i2L/Qwen-Image-i2L-Bias": bias_weights(LAYERS),
    }
    for name, weights in files.items():
        path = studio / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return base


@pytest.fixture
def published(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny files stand for the published ones."""
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(hub))
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "True")
    return hub


@pytest.fixture(scope="session")
def open_pipe(hub: Path) -> Callable[..., QwenImagePipeline]:
    """A pipeline with these files of DiffSynth-Studio beside the base model."""

    def opened(*files: str | Path) -> QwenImagePipeline:
        base = [hub / "Qwen" / "Qwen-Image" / part for part in ("transformer", "text_encoder", "vae")]
        more = [hub / "DiffSynth-Studio" / f"{f}.safetensors" if isinstance(f, str) else f for f in files]
        return QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=path) for path in (*base, *more)],
            tokenizer_config=ModelConfig(path=hub / "Qwen" / "Qwen-Image" / "tokenizer"),
            torch_dtype=torch.float32,
            device="cpu",
            plugins=[qwenimage_i2l],
        )

    return opened


ENCODERS = ("General-Image-Encoders/SigLIP2-G384/model", "General-Image-Encoders/DINOv3-7B/model")
NETWORKS = tuple(f"Qwen-Image-i2L/Qwen-Image-i2L-{name}" for name in ("Style", "Coarse", "Fine"))


@pytest.fixture(scope="session")
def pipe(open_pipe: Callable[..., QwenImagePipeline]) -> QwenImagePipeline:
    return open_pipe(*ENCODERS, *NETWORKS)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def small() -> dict[str, Any]:
    """Request fields of a quick picture."""
    return {
        "prompt": "a red circle",
        "height": 32,
        "width": 32,
        "num_inference_steps": 2,
        "seed": 3,
        "cfg_scale": 1.0,
        "progress_bar_cmd": iter,
        "output_type": "latent",
    }
