"""What of the pipeline is trained: components unfrozen, LoRAs put in, and how either is written to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qwenimage_core.adapters.files import write
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.placement import Placement
from qwenimage_core.writing import whole_file
from qwenimage_training import lora
from qwenimage_training.opening import lora_file
from qwenimage_training.parts import Part, find_part

if TYPE_CHECKING:
    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.arguments import TrainingArguments

Values = Callable[[nn.Parameter], Tensor]
"""What to save of a parameter: itself, or its average over steps."""


@dataclass(frozen=True)
class Trained:
    """The parts trained in full, and the one that has a LoRA, with the paths of its adapted layers."""

    full: tuple[Part, ...]
    lora: Part | None
    targets: tuple[str, ...]
    strip: str
    dtype: torch.dtype

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The whole components that hold what is trained, by name."""
        parts = [*self.full, *([self.lora] if self.lora else [])]
        return {f"{p.key[0]}_{p.key[1]}": p.component.load(whole=True) for p in parts}

    def save(self, path: Path, values: Values, metadata: Mapping[str, str]) -> list[Path]:
        """Write what is trained, each file atomically: the LoRA in interchange form, full weights under published
        names. Where both are trained, the LoRA's file says so in its name."""
        files = []
        if self.full:
            write(path, self._weights(values), {"format": "pt", **metadata})
            self._write_config(path.parent)
            files.append(path)
        if self.lora is not None:
            file = path.with_suffix(".lora.safetensors") if self.full else path
            lora.save(file, self.lora.module, values, self.dtype, metadata)
            files.append(file)
        return files

    def _weights(self, values: Values) -> dict[str, Tensor]:
        found = {}
        for part in self.full:
            published = published_names(part)
            for name, parameter in part.module.named_parameters():
                own = f"{part.path}.{name}" if part.path else name
                tensor = values(parameter).detach().to("cpu", self.dtype)
                found[(part.prefix + published[own]).removeprefix(self.strip)] = tensor
        return found

    def _write_config(self, folder: Path) -> None:
        """Beside the weights of one whole component, its config: so the file opens as the model it came from."""
        if len(self.full) == 1 and not self.full[0].path and self.full[0].component.config is not None:
            text = json.dumps(dict(self.full[0].component.config), indent=2) + "\n"
            with whole_file(folder / "config.json") as beside:
                beside.write_text(text, encoding="utf-8")


def published_names(part: Part) -> dict[str, str]:
    """Name of a parameter in the component -> its published name."""
    spec = part.component.spec
    published = part.component.checkpoint.tensors
    if spec.rename is None:
        return {name: name for name in published}
    return {own: name for name in published if (own := spec.rename(name)) is not None}


def prepare(arguments: TrainingArguments, pipe: QwenImagePipeline) -> Trained:
    """Fuse the preset LoRA, unfreeze what is trained in full, put the LoRA in, and start it from its file."""
    base, preset = arguments.lora_base_model, arguments.preset_lora_model
    full = [find_part(name, pipe.components) for name in arguments.trained]
    with_lora = find_part(base, pipe.components) if base else None
    if with_lora is not None:
        full = [
            part for part in full if part.key != with_lora.key
        ]  # as published: the LoRA alone is trained there
    if not full and with_lora is None:
        raise RequestError(
            "Nothing is trained.",
            mend="give --trainable_models dit (all weights) or --lora_base_model dit (a LoRA), or a --mode",
        )
    _check(full, with_lora)
    for part in [*full, *([with_lora] if with_lora else [])]:
        if arguments.initialize_model_on_cpu and not part.component.loaded:
            part.component.place(Placement.resident("cpu", part.component.dtype))
    if preset is not None and arguments.preset_lora_path is not None:
        lora.fuse(find_part(preset, pipe.components).module, lora_file(arguments.preset_lora_path))
    for part in full:
        part.module.requires_grad_(True).train()
    targets: Sequence[str] = ()
    if with_lora is not None:
        targets = lora.inject(with_lora.module, arguments)
        if arguments.lora_checkpoint is not None:
            lora.start_from(with_lora.module, lora_file(arguments.lora_checkpoint), arguments.lora_rank)
    return Trained(tuple(full), with_lora, tuple(targets), arguments.remove_prefix_in_ckpt, pipe.dtype)


def _check(full: Sequence[Part], with_lora: Part | None) -> None:
    if with_lora is not None and with_lora.path:
        raise RequestError(
            "A LoRA belongs to a whole model.",
            got=f"--lora_base_model {with_lora.name}",
            mend="name the model, and choose its layers with --lora_target_modules",
        )
    if vae := [part.name for part in full if part.component.spec.convert is not None]:
        raise RequestError(
            f"{vae[0]} cannot be trained in full: its file has another form than its weights in use.",
            mend="train dit, text_encoder or a plugin's model",
        )
