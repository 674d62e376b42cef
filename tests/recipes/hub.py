"""The published repositories that recipes name, tiny and random, in the exact layout of the hub.

Folders, file names, shards with their index, tensor names: as published; only sizes and values are not. What is
published is written down here a second time, so that it checks the recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.testing.checkpoints import Variant, write_shards

BLOCKS, WIDTH, TEXT_WIDTH = 2, 64, 48  # of the tiny transformer and text encoder
STUDIO = "DiffSynth-Studio"

# Whole models: which member of the family, and into how many shards the transformer is cut.
MODELS: dict[str, tuple[Variant, int]] = {
    "Qwen/Qwen-Image": ("base", 9),
    "Qwen/Qwen-Image-2512": ("base", 9),
    "Qwen/Qwen-Image-Edit": ("edit", 9),
    "Qwen/Qwen-Image-Edit-2509": ("edit-2509", 5),
    "Qwen/Qwen-Image-Edit-2511": ("edit-2511", 5),
    "Qwen/Qwen-Image-Layered": ("layered", 5),
}
TEXT_ENCODER_SHARDS = 4
# LoRAs of DiffSynth-Studio's training, each the one file `model.safetensors`.
LORAS = (
    "Qwen-Image-Distill-LoRA",
    "Qwen-Image-EliGen",
    "Qwen-Image-EliGen-V2",
    "Qwen-Image-EliGen-Poster",
    "Qwen-Image-In-Context-Control-Union",
    "Qwen-Image-Edit-Lowres-Fix",
    "Qwen-Image-Layered-Control-V2",
)
# ControlNets, each the one file `model.safetensors`, by the channels they read.
CONTROLNETS = {"Canny": 64, "Depth": 64, "Inpaint": 68}
LIGHTNING = (
    "Qwen-Image-Lightning/Qwen-Image-Lightning-4steps-V2.0-bf16",
    "Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V2.0-bf16",
    "Qwen-Image-Lightning/Qwen-Image-Edit-Lightning-4steps-V1.0-bf16",
    "Qwen-Image-Lightning/Qwen-Image-Edit-Lightning-8steps-V1.0-bf16",
    "Qwen-Image-Lightning/Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16",
    "Qwen-Image-Lightning/Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16",
    "Qwen-Image-2512-Lightning/Qwen-Image-2512-Lightning-4steps-V1.0-bf16",
    "Qwen-Image-Edit-2511-Lightning/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16",
)
# Linear layers of a block that LoRAs change: inputs and outputs in widths.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
DOWN = {f"attn.{name}": (1, 1) for name in ATTENTION} | {"img_mlp.net.2": (4, 1), "txt_mlp.net.2": (4, 1)}
MODULATION = {"img_mod.1": (1, 6), "txt_mod.1": (1, 6)}
UP = {"img_mlp.net.0.proj": (1, 4), "txt_mlp.net.0.proj": (1, 4)}
TRAINED_LAYERS, LIGHTNING_LAYERS = DOWN | MODULATION, DOWN | UP
# i2L: the layers that a block of each group makes, and the text tokens that a network reads.
I2L_GROUPS = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    ("img_mlp.net.2", "img_mod.1"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ("txt_mlp.net.2", "txt_mod.1"),
)
I2L_TOKENS = {"Style": 0, "Coarse": 8 * 8 + 7, "Fine": 37 * 37 + 7}
SIGLIP2_WIDTH, DINOV3_WIDTH = 64, 128

Weights = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def write_hub(base: Path) -> Path:
    """Write every repository below `base`, each in its folder `owner/name`."""
    for name, (variant, shards) in MODELS.items():
        _whole_model(base / name, variant, shards)
    # Distill-Full has its transformer at the root; Layered-Control has no VAE of its own.
    for source, target, shards in (
        ("Qwen/Qwen-Image", f"{STUDIO}/Qwen-Image-Distill-Full", 9),
        ("Qwen/Qwen-Image-Layered", f"{STUDIO}/Qwen-Image-Layered-Control/transformer", 5),
    ):
        transformer = base / source / "transformer"
        write_shards(base / target, "diffusion_pytorch_model", _read(transformer), shards)
        (base / target / "config.json").write_bytes((transformer / "config.json").read_bytes())
    for number, name in enumerate(LORAS):
        _save(_lora(number), base / STUDIO / name / "model.safetensors")
    for number, (name, channels) in enumerate(CONTROLNETS.items()):
        folder = base / STUDIO / f"Qwen-Image-Blockwise-ControlNet-{name}"
        _save(_random(_controlnet(channels), number), folder / "model.safetensors")
    for number, name in enumerate(LIGHTNING):
        _save(_lightning(number), base / "lightx2v" / f"{name}.safetensors")
    _i2l(base / STUDIO)
    return base


def _whole_model(folder: Path, variant: Variant, shards: int) -> None:
    """A member of the family; its transformer and its text encoder are not cut into equally many files."""
    write_tiny_checkpoint(folder, variant=variant)
    for part, stem, number in (
        ("transformer", "diffusion_pytorch_model", shards),
        ("text_encoder", "model", TEXT_ENCODER_SHARDS),
    ):
        weights = _read(folder / part)
        (folder / part / f"{stem}.safetensors").unlink()
        write_shards(folder / part, stem, weights, number)


def _read(folder: Path) -> Weights:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _save(weights: Weights, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _random(shapes: Shapes, seed: int) -> Weights:
    """Matrices of unit gain; norms of 1."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if "rms" in name
        else torch.randn(shape, generator=draw) / math.sqrt(shape[-1])
        for name, shape in shapes.items()
    }


def _adapted(layers: dict[str, tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    for block in range(BLOCKS):
        for layer, (inputs, outputs) in layers.items():
            yield f"transformer_blocks.{block}.{layer}", inputs * WIDTH, outputs * WIDTH


def _lora(seed: int, rank: int = 4) -> Weights:
    """As DiffSynth-Studio's training writes them."""
    shapes: Shapes = {}
    for name, inputs, outputs in _adapted(TRAINED_LAYERS):
        shapes[f"{name}.lora_A.default.weight"] = (rank, inputs)
        shapes[f"{name}.lora_B.default.weight"] = (outputs, rank)
    return _random(shapes, seed)


def _lightning(seed: int, rank: int = 4) -> Weights:
    """As lightx2v publishes them: the layers of attention and feed-forward, with an alpha of an eighth of the rank."""
    shapes: Shapes = {}
    for name, inputs, outputs in _adapted(LIGHTNING_LAYERS):
        shapes[f"{name}.lora_down.weight"] = (rank, inputs)
        shapes[f"{name}.lora_up.weight"] = (outputs, rank)
    alphas = {f"{name}.alpha": torch.tensor(rank / 8) for name, _, _ in _adapted(LIGHTNING_LAYERS)}
    return _random(shapes, seed) | alphas


def _controlnet(channels: int) -> Shapes:
    shapes: Shapes = {"img_in.weight": (WIDTH, channels), "img_in.bias": (WIDTH,)}
    for block in range(BLOCKS):
        name = f"controlnet_blocks.{block}"
        shapes |= {f"{name}.{side}_rms.weight": (WIDTH,) for side in "xy"}
        for layer in ("input_proj", "output_proj"):
            shapes |= {f"{name}.{layer}.weight": (WIDTH, WIDTH), f"{name}.{layer}.bias": (WIDTH,)}
    return shapes


def _i2l(studio: Path) -> None:
    """Three hypernetworks, the bias and the two encoders of pictures."""
    for seed, (name, tokens) in enumerate(I2L_TOKENS.items()):
        weights = _random(_hypernetwork(tokens), seed)
        _save(weights, studio / "Qwen-Image-i2L" / f"Qwen-Image-i2L-{name}.safetensors")
    _save(_lora(7), studio / "Qwen-Image-i2L" / "Qwen-Image-i2L-Bias.safetensors")
    for name, encoder in zip(("SigLIP2-G384", "DINOv3-7B"), _encoders(), strict=True):
        _save(encoder, studio / "General-Image-Encoders" / name / "model.safetensors")


def _hypernetwork(tokens: int, compressed: int = 8, middle: int = 3, rank: int = 4) -> Shapes:
    shapes: Shapes = {}
    for block in range(len(I2L_GROUPS) * BLOCKS):
        for number, layer in enumerate(I2L_GROUPS[block // BLOCKS]):
            for side, widths in zip("ab", TRAINED_LAYERS[layer], strict=True):
                name = f"blocks.{block}.layers.{number}.proj_{side}"
                shapes[f"{name}.proj_in.weight"] = (compressed, SIGLIP2_WIDTH + DINOV3_WIDTH)
                shapes[f"{name}.proj_out.weight"] = (rank * widths * WIDTH, compressed)
        if tokens:
            shapes[f"blocks.{block}.proj_residual.proj_in.weight"] = (middle, TEXT_WIDTH)
            shapes[f"blocks.{block}.proj_residual.proj_out.weight"] = (compressed, tokens * middle)
    return shapes


def _encoders() -> tuple[Weights, Weights]:
    """SigLIP2 and DINOv3 by transformers, with the head counts of the published ones; DINOv3's names as published."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    siglip2 = SiglipVisionConfig(
        hidden_size=SIGLIP2_WIDTH,
        intermediate_size=96,
        image_size=48,
        num_attention_heads=16,
        num_hidden_layers=2,
        patch_size=16,
    )
    dinov3 = DINOv3ViTConfig(
        hidden_size=DINOV3_WIDTH,
        intermediate_size=96,
        num_attention_heads=32,
        num_hidden_layers=2,
        patch_size=16,
        num_register_tokens=4,
        use_gated_mlp=True,
        hidden_act="silu",
        query_bias=False,
        value_bias=False,
    )
    published = {
        n.replace("model.layer.", "layer."): w for n, w in DINOv3ViTModel(dinov3).state_dict().items()
    }
    return SiglipVisionModel(siglip2).state_dict(), published
