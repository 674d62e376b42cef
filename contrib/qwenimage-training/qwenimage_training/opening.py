"""From training arguments to a pipeline: the models, in the form that they are trained in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.assemble import prompt_encoder
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.components import find_components
from qwenimage_core.loading.recognise import CORE_COMPONENTS
from qwenimage_core.loading.sources import locate
from qwenimage_core.models.backbone import BackboneDescription
from qwenimage_core.models.transformer import TransformerConfig
from qwenimage_core.models.vae import VAEConfig
from qwenimage_training.data.arguments import names

if TYPE_CHECKING:
    from pathlib import Path

    from qwenimage_core.registry import PluginRegistry
    from qwenimage_training.arguments import TrainingArguments

RGBA = 4
_ON_A_HUB = re.compile(r"[\w.-]+/[\w.-]+:.+")


def open_pipeline(
    arguments: TrainingArguments,
    registry: PluginRegistry,
    device: torch.device,
    known: Mapping[str, Any] | None = None,
) -> QwenImagePipeline:
    """The models of the arguments, frozen, with plans made of the rows alone: a model's defaults for requests, which
    are for drawing, are left out. `known` is what a cache says of the encoders that it was made with."""
    plugins: Any = registry  # taken as it is, so that plugins are found once
    if arguments.stage and arguments.model is None:
        pipe = open_part(arguments, registry, device, model_configs(arguments), known)
    else:
        pipe = QwenImagePipeline.from_pretrained(
            arguments.model,
            torch_dtype=dtype_of(arguments, device),
            device=device,
            model_configs=model_configs(arguments),
            tokenizer_config=_folder(arguments.tokenizer_path),
            processor_config=_folder(arguments.processor_path),
            plugins=plugins,
        )
    pipe.defaults = {}
    pipe.options = replace(
        pipe.options, activation=arguments.activation, zero_cond_t=True if arguments.zero_cond_t else None
    )
    return pipe


def open_part(
    arguments: TrainingArguments,
    registry: PluginRegistry,
    device: torch.device,
    configs: Sequence[ModelConfig],
    known: Mapping[str, Any] | None,
) -> QwenImagePipeline:
    """A pipeline for one stage of two: the encoders without a transformer, or (`known`) the other way round."""
    registry.load_all()
    specs = [s for plugin in registry.loaded for s in plugin.call("components") or ()]
    dtype = dtype_of(arguments, device)
    components = find_components(
        configs,
        dtype=dtype,
        device=device,
        specs=(*CORE_COMPONENTS, *specs),
        needed=("text_encoder", "vae") if known is None else ("transformer",),
    )
    prompts: Any = None  # nothing is encoded in the second stage
    if known is None:
        vae, text_encoder = components["vae"][0].skeleton.config, components["text_encoder"][0]
        width = text_encoder.skeleton.width
        prompts = prompt_encoder(
            text_encoder, _folder(arguments.tokenizer_path), _folder(arguments.processor_path)
        )
    else:
        width = known["text_width"]
        vae = SimpleNamespace(
            z_dim=known["latent_channels"],
            input_channels=known["image_channels"],
            scale=known["vae_scale"],
            base_dim=known["vae_width"],
        )
    if "transformer" in components:
        transformer = components["transformer"][0].skeleton.config
    else:  # of the published family; what differs within it is looked at when the transformer is there
        patch = TransformerConfig().patch_size
        transformer = TransformerConfig(
            in_channels=vae.z_dim * patch**2,
            out_channels=vae.z_dim,
            joint_attention_dim=width,
            # a VAE with an alpha channel is that of Qwen-Image-Layered
            use_layer3d_rope=vae.input_channels == RGBA,
            use_additional_t_cond=vae.input_channels == RGBA,
        )
    return QwenImagePipeline(
        components=components,
        prompts=prompts,
        backbone=BackboneDescription.of_qwen_image(transformer, cast(VAEConfig, vae), width),
        registry=registry,
        dtype=dtype,
        device=device,
    )


def dtype_of(arguments: TrainingArguments, device: torch.device) -> torch.dtype:
    chosen = arguments.mixed_precision or ("no" if device.type == "cpu" else "bf16")
    return torch.float32 if chosen == "no" else torch.bfloat16


def model_configs(arguments: TrainingArguments) -> list[ModelConfig]:
    """The ModelConfigs of `model_paths` and `model_id_with_origin_paths`, in that order."""
    configs = list(model_entries(arguments).values())
    if not configs and arguments.model is None:
        raise RequestError(
            "Nothing says which models to train.",
            mend="give --model, --model_paths or --model_id_with_origin_paths, or a --recipe",
        )
    return configs


def model_entries(arguments: TrainingArguments) -> dict[str, ModelConfig]:
    """The model options entry by entry, as they are written (a list of shards as JSON)."""
    entries = {
        path if isinstance(path, str) else json.dumps(path): ModelConfig(path=path)
        for path in arguments.local_models
    }
    for text in names(arguments.model_id_with_origin_paths):
        if not _ON_A_HUB.fullmatch(text):
            raise RequestError(
                "--model_id_with_origin_paths is not as it should be.",
                got=text,
                expected="ORG/NAME:FILE-PATTERN, several separated by commas",
            )
        model_id, _, pattern = text.rpartition(":")
        entries[text] = ModelConfig(model_id=model_id, origin_file_pattern=pattern)
    return entries


def lora_file(text: str) -> str | Path:
    """A LoRA file: local, or ORG/NAME:FILE on a hub."""
    if not _ON_A_HUB.fullmatch(text):
        return text
    model_id, _, pattern = text.rpartition(":")
    return locate(ModelConfig(model_id=model_id, origin_file_pattern=pattern))[0]


def _folder(path: str | None) -> ModelConfig | None:
    return None if path is None else ModelConfig(path=path)
