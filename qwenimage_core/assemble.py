"""What `from_pretrained` puts together: components, prompt encoder, backbone, plugins, and the model's own defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.bundle import Bundle, find_bundle, load_tokenizer
from qwenimage_core.loading.components import Component, find_components
from qwenimage_core.loading.config import ModelConfig, report_placement
from qwenimage_core.loading.recognise import CORE_COMPONENTS, ComponentSpec
from qwenimage_core.loading.shards import read_json
from qwenimage_core.loading.sources import locate_folder
from qwenimage_core.models.backbone import BackboneDescription
from qwenimage_core.models.prompt_tokens import PromptTokenizer
from qwenimage_core.models.text_encoder import PromptEncoder
from qwenimage_core.models.vision import PicturePreparation
from qwenimage_core.registry import PluginRegistry

TOKENIZER = ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="tokenizer/")
DEFAULTS_FILE = "defaults.json"
PREPROCESSOR_FILE = "preprocessor_config.json"


def assemble(
    model: str | Path | None,
    *,
    torch_dtype: torch.dtype | None,
    device: str | torch.device | None,
    model_configs: Sequence[ModelConfig],
    tokenizer_config: ModelConfig | None,
    processor_config: ModelConfig | None,
    vram_limit: float | None,
    plugins: Sequence[Any] | PluginRegistry,
) -> dict[str, Any]:
    """The arguments of `QwenImagePipeline`. Files are found and their headers checked; no weights are read."""
    bundle = _bundle(model, model_configs, tokenizer_config, processor_config)
    device = torch.device(device) if device is not None else _accelerator()
    dtype = torch_dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    configs = [
        config for config in (*bundle.models, bundle.tokenizer, bundle.processor) if config is not None
    ]
    report_placement(
        configs, dtype=str(dtype).removeprefix("torch."), device=str(device), vram_limit=vram_limit
    )
    registry = plugins if isinstance(plugins, PluginRegistry) else PluginRegistry.discover(plugins)
    components = find_components(bundle.models, dtype=dtype, device=device, specs=_specs(registry))
    transformer, vae, text_encoder = (components[name][0] for name in ("transformer", "vae", "text_encoder"))
    return {
        "components": components,
        "prompts": prompt_encoder(text_encoder, bundle.tokenizer, bundle.processor),
        "backbone": BackboneDescription.of_qwen_image(
            transformer.skeleton.config, vae.skeleton.config, text_encoder.skeleton.width
        ),
        "registry": registry,
        "dtype": dtype,
        "device": device,
        "defaults": _defaults(bundle),
    }


def _bundle(
    model: str | Path | None,
    model_configs: Sequence[ModelConfig],
    tokenizer: ModelConfig | None,
    processor: ModelConfig | None,
) -> Bundle:
    if (model is None) == (not model_configs):
        raise LoadError(
            "A pipeline is opened from a model's name, or from ModelConfigs.",
            got="both" if model is not None else "neither",
            expected="one of them",
            mend='from_pretrained("Qwen/Qwen-Image"), from_pretrained("tiny") or from_pretrained(model_configs=[...])',
        )
    if model is None:
        return Bundle(models=tuple(model_configs), tokenizer=tokenizer or TOKENIZER, processor=processor)
    bundle = find_bundle(model)
    return replace(bundle, tokenizer=tokenizer or bundle.tokenizer, processor=processor or bundle.processor)


def _accelerator() -> torch.device:
    """The accelerator that is there, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _specs(registry: PluginRegistry) -> tuple[ComponentSpec, ...]:
    """The core's components and those of every plugin that can be loaded."""
    registry.load_all()
    return (
        *CORE_COMPONENTS,
        *(spec for plugin in registry.loaded for spec in plugin.call("components") or ()),
    )


def prompt_encoder(
    text_encoder: Component, tokenizer: ModelConfig | None = None, processor: ModelConfig | None = None
) -> PromptEncoder:
    """What encodes prompts: with the published tokenizer and picture preparation where none is given. The text encoder
    is read on first use."""
    tokens = PromptTokenizer(load_tokenizer(locate_folder(tokenizer or TOKENIZER)))
    preparation = PicturePreparation()
    if processor is not None:
        preparation = PicturePreparation.from_dict(read_json(locate_folder(processor) / PREPROCESSOR_FILE))
    return PromptEncoder(tokens, text_encoder.load, preparation)


def _defaults(bundle: Bundle) -> Mapping[str, Any]:
    """Request fields that suit this model: `defaults.json` in its folder, where there is one."""
    if bundle.folder is None or not (bundle.folder / DEFAULTS_FILE).is_file():
        return {}
    return read_json(bundle.folder / DEFAULTS_FILE)
