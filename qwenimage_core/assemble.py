"""What `from_pretrained` puts together: components, prompt encoder, backbone, plugins, and the model's own defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qwenimage_core.adapters.layer import is_adapted
from qwenimage_core.errors import LoadError
from qwenimage_core.loading.bundle import Bundle, find_bundle, load_tokenizer
from qwenimage_core.loading.components import Component, find_components
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.placement import Placement, placement_of
from qwenimage_core.loading.recognise import CORE_COMPONENTS, ComponentSpec
from qwenimage_core.loading.shards import read_json
from qwenimage_core.loading.sources import locate_folder
from qwenimage_core.memory.presets import Machine, Memory
from qwenimage_core.models.backbone import BackboneDescription
from qwenimage_core.models.prompt_tokens import PromptTokenizer
from qwenimage_core.models.text_encoder import PromptEncoder
from qwenimage_core.models.vision import PicturePreparation
from qwenimage_core.recipes import find_recipe
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
    memory: Memory | None = None,
    plugins: Sequence[Any] | PluginRegistry,
) -> dict[str, Any]:
    """The arguments of `QwenImagePipeline`. Files are found and their headers checked; no weights are read."""
    bundle = _bundle(model, model_configs, tokenizer_config, processor_config)
    device = torch.device(device) if device is not None else _accelerator()
    dtype = torch_dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    configs = [
        config for config in (*bundle.models, bundle.tokenizer, bundle.processor) if config is not None
    ]
    machine = None if memory is None else _machine(memory, device, configs, vram_limit)
    _check_placed([c for c in (bundle.tokenizer, bundle.processor) if c is not None], configs, vram_limit)
    registry = plugins if isinstance(plugins, PluginRegistry) else PluginRegistry.discover(plugins)

    def placed(config: ModelConfig) -> Placement:
        found = placement_of(config, dtype=dtype, device=device, vram_limit=vram_limit)
        return found if machine is None else replace(found, limit=machine.limit)

    components = find_components(bundle.models, placed=placed, specs=component_specs(registry))
    transformer, vae, text_encoder = (components[name][0] for name in ("transformer", "vae", "text_encoder"))
    return {
        "components": components,
        "prompts": prompt_encoder(text_encoder, bundle.tokenizer, bundle.processor),
        "backbone": BackboneDescription.of_qwen_image(
            transformer.skeleton.config, vae.skeleton.config, text_encoder.skeleton.width
        ),
        "registry": registry,
        "dtype": transformer.dtype,
        "device": transformer.device,
        "machine": machine,
        "defaults": _defaults(bundle),
    }


def assemble_recipe(
    name: str,
    *,
    torch_dtype: torch.dtype | None,
    device: str | torch.device | None,
    vram_limit: float | None,
    memory: Memory | None = None,
    low_memory: bool,
    plugins: Sequence[Any] | PluginRegistry,
    files: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, ModelConfig]]:
    """The arguments of `QwenImagePipeline` for a recipe, and its LoRAs by name. `files` go to every ModelConfig."""
    registry = plugins if isinstance(plugins, PluginRegistry) else PluginRegistry.discover(plugins)
    recipe = find_recipe(name, registry)
    placement: Mapping[str, Any] = recipe.low_memory if low_memory else {}
    parts = assemble(
        None,
        torch_dtype=torch_dtype,
        device=device,
        model_configs=[ModelConfig(**model, **placement, **files) for model in recipe.models],
        tokenizer_config=ModelConfig(**recipe.tokenizer, **files) if recipe.tokenizer else None,
        processor_config=ModelConfig(**recipe.processor, **files) if recipe.processor else None,
        vram_limit=vram_limit,
        memory=memory,
        plugins=registry,
    )
    for component in [each for several in parts["components"].values() for each in several]:
        if low_memory and component.quantised:  # cast to eight bits once more, it would lose what it has
            component.place(component.placement.as_stored())
    given = {
        field: {**value, **files} if isinstance(value, Mapping) and "model_id" in value else value
        for field, value in recipe.given.items()
    }
    loras = {
        recipe.name + (f"-{i}" if i else ""): ModelConfig(**lora, **files)
        for i, lora in enumerate(recipe.loras)
    }
    return {**parts, "defaults": recipe.defaults, "options": recipe.options, "given": given}, loras


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


def _check_placed(
    unplaced: Sequence[ModelConfig], configs: Sequence[ModelConfig], vram_limit: float | None
) -> None:
    """Placement that nothing would heed is an error."""
    for config in unplaced:
        if config.placement():
            raise LoadError(
                f"{config} holds no weights, so that placement settings mean nothing for it.",
                got=", ".join(config.placement()),
                mend="leave them out of this ModelConfig",
            )
    if vram_limit is not None and not any(config.offload_device for config in configs):
        raise LoadError(
            "vram_limit has no effect: no ModelConfig may leave the device.",
            got=f"vram_limit={vram_limit:g}",
            mend='give offload_dtype and offload_device (as "disk") to the ModelConfigs, or use memory=',
        )


def _machine(
    memory: Memory, device: torch.device, configs: Sequence[ModelConfig], vram_limit: float | None
) -> Machine:
    """What a preset may use; it says all about placement, so that other words about it are an error."""
    placed = [f"{config}: {', '.join(config.placement())}" for config in configs if config.placement()]
    placed += [] if vram_limit is None else [f"vram_limit={vram_limit:g}"]
    if placed:
        raise LoadError(
            "`memory` chooses the placement of every component, so that it cannot be given as well.",
            got=f"memory={memory!r} and {placed[0]}",
            mend="leave out memory, or the placement settings (low_memory gives them, too) and vram_limit",
        )
    return Machine.of(memory, device)


def _accelerator() -> torch.device:
    """The accelerator that is there, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def component_specs(registry: PluginRegistry) -> tuple[ComponentSpec, ...]:
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

    def unchanged() -> bool:
        return text_encoder.as_stored and not is_adapted(text_encoder.skeleton)

    return PromptEncoder(tokens, text_encoder.load, preparation, unchanged=unchanged)


def _defaults(bundle: Bundle) -> Mapping[str, Any]:
    """Request fields that suit this model: `defaults.json` in its folder, where there is one."""
    if bundle.folder is None or not (bundle.folder / DEFAULTS_FILE).is_file():
        return {}
    return read_json(bundle.folder / DEFAULTS_FILE)
