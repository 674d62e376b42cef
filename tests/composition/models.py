"""Tiny random models for runs with several plugins: a base, ControlNets, what i2L needs, and a Lightning file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

Family = Literal["edit-2509", "edit-2511", "layered"]

BLOCKS, WIDTH = 2, 64  # of the tiny transformer
CONTROLNETS = ("edges.safetensors", "inpaint.safetensors")
I2L = ("siglip2.safetensors", "dinov3.safetensors", "style.safetensors")
LIGHTNING = {
    "edit-2509": "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
    "edit-2511": "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
    "layered": "Qwen-Image-Lightning-4steps-V1.0-bf16.safetensors",  # there is none for it: this one is refused
}


def write_models(folder: Path, family: Family) -> Path:
    """Every file of a family, in a folder of its own."""
    base = write_tiny_checkpoint(folder / family, variant=family)
    write_controlnets(base)
    for name, weights in zip(I2L, _i2l(), strict=True):
        save_file(weights, base / name)
    save_file(_lightning(), base / LIGHTNING[family])
    return base


def write_controlnets(folder: Path) -> list[Path]:
    """Two that add about as much as the blocks do: for a control picture, and for one with a mask."""
    files = []
    for number, (name, channels) in enumerate(zip(CONTROLNETS, (64, 68), strict=True)):
        net = new_controlnet(blocks=BLOCKS, channels=channels, width=WIDTH)
        shapes = {key: tuple(p.shape) for key, p in net.named_parameters()}
        drawn = _random(shapes, number)
        net.load_state_dict(
            {k: drawn[k] if len(s) > 1 else drawn[k] * 0.1 + ("rms" in k) for k, s in shapes.items()}
        )
        files.append(save_controlnet(net, folder / name))
    return files


def open_pipe(
    base: Path, plugins: Sequence[Any] = (), more: Sequence[str] = (*CONTROLNETS, *I2L), **placement: Any
) -> QwenImagePipeline:
    """A pipeline on the files of `write_models`: the base, and `more` of the rest."""
    parts = ("transformer", "text_encoder", "vae", *more)
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=base / name, **placement) for name in parts],
        tokenizer_config=ModelConfig(path=base / "tokenizer"),
        processor_config=ModelConfig(path=base / "processor"),
        torch_dtype=torch.float32,
        device="cpu",
        plugins=plugins,
    )


def _random(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Matrices of unit gain, so that what goes in makes a difference to what comes out."""
    draw = torch.Generator().manual_seed(seed)
    gain = {name: max(torch.Size(s[1:]).numel(), 1) ** -0.5 for name, s in shapes.items()}
    return {name: torch.randn(tuple(s), generator=draw) * gain[name] for name, s in shapes.items()}


def _lightning() -> dict[str, torch.Tensor]:
    shapes = {
        f"transformer_blocks.{block}.{module}.lora_{side}.weight": shape
        for block in range(BLOCKS)
        for module in ("attn.to_q", "attn.add_v_proj")
        for side, shape in (("down", (4, WIDTH)), ("up", (WIDTH, 4)))
    }
    alphas = {name.split(".lora_")[0] + ".alpha": torch.tensor(2.0) for name in shapes}
    return _random(shapes, 5) | alphas


def _i2l() -> tuple[dict[str, torch.Tensor], ...]:
    """SigLIP2 and DINOv3 under the names of the published files, and a style network that reads them."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel, SiglipVisionConfig, SiglipVisionModel

    shared: dict[str, Any] = {"num_hidden_layers": 1, "patch_size": 16, "intermediate_size": 96}
    torch.manual_seed(0)
    siglip2 = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=64, image_size=32, num_attention_heads=16, **shared)
    )
    dinov3 = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=128,
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
    return _lively(siglip2.state_dict()), _lively(renamed), _random(_style_shapes(64 + 128), 7)


def _lively(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    drawn = _random({name: w.shape for name, w in weights.items()}, 6)
    return {
        name: drawn[name] if w.ndim > 1 and "norm" not in name else w.clone() for name, w in weights.items()
    }


def _style_shapes(embedding: int) -> dict[str, tuple[int, ...]]:
    """Four groups of layers a transformer block; inputs and outputs of each layer in widths."""
    groups = ([(1, 1)] * 4, [(4, 1), (1, 6)], [(1, 1)] * 4, [(4, 1), (1, 6)])
    return {
        f"blocks.{k}.layers.{j}.proj_{side}.proj_{part}.weight": shape
        for k in range(BLOCKS * len(groups))
        for j, sizes in enumerate(groups[k // BLOCKS])
        for side, size in zip("ab", sizes, strict=True)
        for part, shape in (("in", (8, embedding)), ("out", (4 * size * WIDTH, 8)))
    }
