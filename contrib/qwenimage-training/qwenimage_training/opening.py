"""From training arguments to a pipeline: the models, in the form that they are trained in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.sources import locate
from qwenimage_training.data.arguments import names

if TYPE_CHECKING:
    from pathlib import Path

    from qwenimage_core.registry import PluginRegistry
    from qwenimage_training.arguments import TrainingArguments

_ON_A_HUB = re.compile(r"[\w.-]+/[\w.-]+:.+")


def open_pipeline(
    arguments: TrainingArguments, registry: PluginRegistry, device: torch.device
) -> QwenImagePipeline:
    """The models of the arguments, frozen, with plans made of the rows alone: a model's defaults for requests, which
    are for drawing, are left out."""
    plugins: Any = registry  # taken as it is, so that plugins are found once
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
