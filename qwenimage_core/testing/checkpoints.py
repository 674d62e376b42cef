"""Tiny random models in the exact layout of the hub: folders, files, configs, tensor names, numbers of dimensions.

Made for tests: whatever loads a published model loads one of these, in no time. Names and shapes are written down here
a second time, from the published files, so that they check the models' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwenimage_core.models.vae import VAEConfig, published_shapes
from qwenimage_core.testing.tokenizer import tiny_tokenizer, token_ids, write_tokenizer

Shapes = dict[str, tuple[int, ...]]
Variant = Literal["base", "edit", "edit-2509", "edit-2511", "layered"]

TEXT_WIDTH = 48


@dataclass(frozen=True)
class _Variant:
    """What tells one member of the family from another, on disk."""

    pipeline: str
    transformer: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3


_LAYERED = {"use_additional_t_cond": True, "use_layer3d_rope": True}
VARIANTS: Mapping[Variant, _Variant] = {
    "base": _Variant("QwenImagePipeline"),
    "edit": _Variant("QwenImageEditPipeline"),
    "edit-2509": _Variant("QwenImageEditPlusPipeline"),
    "edit-2511": _Variant("QwenImageEditPlusPipeline", {"zero_cond_t": True}),
    "layered": _Variant("QwenImageLayeredPipeline", _LAYERED, channels=4),
}


def write_tiny_checkpoint(
    folder: Path | str,
    *,
    variant: Variant = "base",
    seed: int = 0,
    layers: int = 2,
    shards: int = 1,
    with_config: bool = True,
) -> Path:
    """Write a whole tiny model and return its folder. Equal arguments give equal bytes.

    Two heads of 32 channels and `layers` blocks; a text encoder 48 wide with a vision tower; a VAE of base width 8 with
    16 latent channels. Weights are float32 and drawn at a scale that keeps activations near 1. `shards` above 1 splits
    transformer and text encoder, with an index. Without `with_config` the config.json of transformer and VAE are left
    out: their shapes tell the rest.
    """
    folder = Path(folder)
    kind = VARIANTS[variant]
    draw = torch.Generator().manual_seed(seed)
    transformer = transformer_config(layers, **kind.transformer)
    vae = VAEConfig(base_dim=8, input_channels=kind.channels)
    _write_weights(
        folder / "transformer", "diffusion_pytorch_model", transformer_shapes(transformer), draw, shards
    )
    _write_weights(folder / "vae", "diffusion_pytorch_model", published_shapes(vae), draw)
    text_encoder = text_encoder_config()
    _write_weights(folder / "text_encoder", "model", text_encoder_shapes(text_encoder), draw, shards)
    _write_json(folder / "text_encoder" / "config.json", text_encoder)
    if with_config:
        _write_json(folder / "transformer" / "config.json", transformer)
        _write_json(folder / "vae" / "config.json", {"_diffusers_version": "0.36.0", **vae.to_dict()})
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "processor")
    _write_json(folder / "processor" / "preprocessor_config.json", PREPROCESSOR)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", _model_index(variant))
    return folder


def transformer_config(layers: int, **options: Any) -> dict[str, Any]:
    """A `transformer/config.json`; `options` are the keys that only some members have."""
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "_diffusers_version": "0.36.0",
        "attention_head_dim": 32,
        "axes_dims_rope": [4, 14, 14],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": TEXT_WIDTH,
        "num_attention_heads": 2,
        "num_layers": layers,
        "out_channels": 16,
        "patch_size": 2,
        **options,
    }


def text_encoder_config(
    *,
    width: int = TEXT_WIDTH,
    layers: int = 2,
    heads: int = 3,
    vision_width: int = 32,
    vision_layers: int = 2,
) -> dict[str, Any]:
    """A `text_encoder/config.json`, with the language model's keys at the top, as the hub has them."""
    ids = token_ids()
    language = {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 32768,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tiny_tokenizer().get_vocab_size(),
    }
    vision = {
        "depth": vision_layers,
        "fullatt_block_indexes": [vision_layers - 1],
        "hidden_act": "silu",
        "hidden_size": vision_width,
        "in_channels": 3,
        "in_chans": 3,
        "intermediate_size": 2 * vision_width,
        "model_type": "qwen2_5_vl",
        "num_heads": 2,
        "out_hidden_size": width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        **language,
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen2_5_vl",
        "text_config": {**language, "model_type": "qwen2_5_vl_text"},
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
    }


def transformer_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensor names and shapes of a published transformer: 32 a block and 13 (Layered: 14) around them."""
    head = config["attention_head_dim"]
    width, text = config["num_attention_heads"] * head, config["joint_attention_dim"]
    shapes = dict(_linear("img_in", config["in_channels"], width)) | dict(_linear("txt_in", text, width))
    shapes["txt_norm.weight"] = (text,)
    shapes |= _linear("time_text_embed.timestep_embedder.linear_1", 256, width)
    shapes |= _linear("time_text_embed.timestep_embedder.linear_2", width, width)
    if config.get("use_additional_t_cond"):
        shapes["time_text_embed.addition_t_embedding.weight"] = (2, width)
    shapes |= _linear("norm_out.linear", width, 2 * width)
    shapes |= _linear("proj_out", width, config["patch_size"] ** 2 * config["out_channels"])
    projections = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for number in range(config["num_layers"]):
        block = f"transformer_blocks.{number}."
        for stream in ("img", "txt"):
            shapes |= _linear(f"{block}{stream}_mod.1", width, 6 * width)
            shapes |= _linear(f"{block}{stream}_mlp.net.0.proj", width, 4 * width)
            shapes |= _linear(f"{block}{stream}_mlp.net.2", 4 * width, width)
        for name in projections:
            shapes |= _linear(f"{block}attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}attn.{name}.weight"] = (head,)
    return shapes


def text_encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensor names and shapes of a published text encoder: language model, vision tower and head."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    pairs = config["num_key_value_heads"] * (width // config["num_attention_heads"])
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    shapes["model.norm.weight"] = (width,)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name, out in (("q_proj", width), ("k_proj", pairs), ("v_proj", pairs)):
            shapes |= _linear(f"{layer}self_attn.{name}", width, out)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (
            width,
        )
    return shapes | _vision_shapes(config["vision_config"])


def _vision_shapes(config: Mapping[str, Any]) -> Shapes:
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    merged = width * config["spatial_merge_size"] ** 2
    shapes: Shapes = {
        "visual.patch_embed.proj.weight": (width, 3, config["temporal_patch_size"], patch, patch),
        "visual.merger.ln_q.weight": (width,),
        **dict(_linear("visual.merger.mlp.0", merged, merged)),
        **dict(_linear("visual.merger.mlp.2", merged, config["out_hidden_size"])),
    }
    for number in range(config["depth"]):
        block = f"visual.blocks.{number}."
        shapes[f"{block}norm1.weight"] = shapes[f"{block}norm2.weight"] = (width,)
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width)
        shapes |= _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.gate_proj", width, inner)
        shapes |= _linear(f"{block}mlp.up_proj", width, inner)
        shapes |= _linear(f"{block}mlp.down_proj", inner, width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def random_weights(shapes: Mapping[str, Sequence[int]], draw: torch.Generator) -> dict[str, Tensor]:
    """Weights for these names: matrices and kernels of unit gain, norms near 1, biases near 0."""
    weights = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(tuple(shape), generator=draw)
        if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):
            weights[name] = 1 + 0.1 * noise
        elif name.endswith("bias"):
            weights[name] = 0.05 * noise
        else:
            # Of a 5-D kernel only the last temporal slice ever acts, so that slice sets the gain.
            acting = math.prod(shape[1:]) // (shape[2] if len(shape) == 5 and "visual" not in name else 1)
            weights[name] = noise / math.sqrt(acting)
    return weights


def write_shards(folder: Path, stem: str, weights: Mapping[str, Tensor], shards: int = 1) -> None:
    """One `stem.safetensors`, or `stem-0000i-of-0000n.safetensors` with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(weights), folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"{stem}-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(
        folder / f"{stem}.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _write_weights(
    folder: Path, stem: str, shapes: Mapping[str, Sequence[int]], draw: torch.Generator, shards: int = 1
) -> None:
    write_shards(folder, stem, random_weights(shapes, draw), shards)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _model_index(variant: Variant) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": VARIANTS[variant].pipeline,
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    # The published text-to-image model has no processor; the folder written here does no harm to it.
    return index if variant == "base" else index | {"processor": ["transformers", "Qwen2VLProcessor"]}


SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.36.0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
PREPROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}
