"""Draw a recipe's example with what training gave, and with what it began from.

A LoRA is put on the recipe's models, without the LoRAs of the recipe: it takes their place. Full weights take the
place of the model that they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.components import find_components
from qwenimage_core.loading.recognise import CORE_COMPONENTS

if TYPE_CHECKING:
    from qwenimage_core.registry import PluginRegistry
    from qwenimage_core.values import Recipe

STUDENT = {"num_inference_steps": 4, "cfg_scale": 1.0}
"""How what was distilled directly is drawn, as published."""


@dataclass(frozen=True)
class Validation:
    """`file` is a LoRA, or the full weights of one model of the recipe."""

    recipe: Recipe
    registry: PluginRegistry
    mode: Literal["lora", "full"]
    file: Path
    fields: Mapping[str, Any]
    dtype: torch.dtype | None = None
    device: str | None = None
    configs: tuple[ModelConfig, ...] = field(init=False)

    def __post_init__(self) -> None:
        forms = {form.mode: form for form in self.recipe.training}
        if self.mode not in forms:
            raise RequestError(
                f"The recipe {self.recipe.name} has no published training of mode {self.mode}.",
                expected=" or ".join(forms) or "none: this recipe is not trained",
            )
        if not self.file.is_file():
            raise RequestError("The trained weights are not there.", got=self.file, expected="a file")
        object.__setattr__(self, "configs", tuple(ModelConfig(**model) for model in self.recipe.models))

    @property
    def request(self) -> dict[str, Any]:
        """The recipe's example, with the fields that were given in its place."""
        return {**self.recipe.example, **self.fields}

    def base(self) -> QwenImagePipeline:
        """What training began from: the recipe's models, and the LoRA that it went on from where there is one."""
        pipe = self._open(self.configs)
        start = self._form.get("lora_checkpoint") if self.mode == "lora" else None
        if start is not None:
            pipe.load_lora(ModelConfig(**start) if isinstance(start, Mapping) else start, name="start")
        return pipe

    def trained(self, base: QwenImagePipeline) -> QwenImagePipeline:
        """The same with the trained weights. `base` is used up."""
        if self.mode == "lora":
            base.clear_lora()
            base.load_lora(self.file)
            return base
        for several in base.components.values():
            for component in several:
                component.release()
        return self._open(self._replaced())

    def draw(self, pipe: QwenImagePipeline, progress: Any = None) -> Any:
        """What `QwenImagePipeline.generate` gives for the request."""
        return pipe.generate(**self.request, **({"progress_bar_cmd": progress} if progress else {}))

    @property
    def _form(self) -> Mapping[str, Any]:
        return next(form.arguments for form in self.recipe.training if form.mode == self.mode)

    def _open(self, configs: tuple[ModelConfig, ...]) -> QwenImagePipeline:
        recipe, plugins = self.recipe, self.registry
        shared: Any = {"plugins": plugins}  # taken as it is, so that plugins are found once
        pipe = QwenImagePipeline.from_pretrained(
            model_configs=configs,
            tokenizer_config=ModelConfig(**recipe.tokenizer) if recipe.tokenizer else None,
            processor_config=ModelConfig(**recipe.processor) if recipe.processor else None,
            torch_dtype=self.dtype,
            device=self.device,
            **shared,
        )
        distilled = str(self._form.get("task", "")).startswith("direct_distill")
        pipe.defaults = {**recipe.defaults, **(STUDENT if distilled else {})}
        pipe.options, pipe.given = recipe.options, dict(recipe.given)
        return pipe

    def _replaced(self) -> tuple[ModelConfig, ...]:
        """The recipe's models, that of the file's kind replaced."""
        own = ModelConfig(path=self.file)
        [kind] = self._kinds(own)
        places = [i for i, config in enumerate(self.configs) if kind in self._kinds(config)]
        if len(places) != 1:
            raise RequestError(
                f"{self.file.name} holds a {kind}, and nothing says which of the recipe's models it replaces.",
                got=f"{len(places)} of that kind in {self.recipe.name}",
                expected="one",
            )
        return tuple(own if i == places[0] else config for i, config in enumerate(self.configs))

    def _kinds(self, config: ModelConfig) -> set[str]:
        self.registry.load_all()
        specs = [s for plugin in self.registry.loaded for s in plugin.call("components") or ()]
        return set(find_components([config], specs=(*CORE_COMPONENTS, *specs), needed=()))


def chosen(lora: Path | None, full: Path | None) -> tuple[Literal["lora", "full"], Path]:
    """Which of the two was given; RequestError for both or neither."""
    if lora is not None and full is None:
        return "lora", lora
    if full is not None and lora is None:
        return "full", full
    raise RequestError(
        "Validation looks at one trained file.",
        got="both" if lora is not None else "neither",
        expected="--lora FILE, or --full FILE",
    )


def difference(one: Any, other: Any) -> float:
    """Mean difference of two lists of pictures, in levels of 0 to 255."""
    from qwenimage_core.images import to_tensor

    parts = [
        float((to_tensor(a, len(a.getbands())) - to_tensor(b, len(b.getbands()))).abs().mean()) * 127.5
        for a, b in zip(one, other, strict=True)
    ]
    return sum(parts) / len(parts)
