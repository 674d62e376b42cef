"""Storage of frozen models in eight bits (`--fp8_models`): half the memory of bfloat16, arithmetic as before.

A weight is kept as float8_e4m3fn without a scale, as published, and takes the dtype of computation while its own layer
runs. Vectors (biases, norms), embeddings and narrow weights, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwenimage_core.errors import RequestError
from qwenimage_core.loading.sources import locate
from qwenimage_training.data.arguments import names
from qwenimage_training.opening import model_entries

if TYPE_CHECKING:
    from qwenimage_core import QwenImagePipeline
    from qwenimage_core.loading.components import Component
    from qwenimage_training.arguments import TrainingArguments

STORED = torch.float8_e4m3fn
NARROW = 16


def store_in_fp8(arguments: TrainingArguments, pipe: QwenImagePipeline) -> None:
    """Store the models that `--fp8_models` names; to be called when what is trained has been chosen.

    Raises RequestError for an entry that is not, character for character, one of the model options, and for a model
    with nothing frozen.
    """
    entries = model_entries(arguments)
    for name in names(arguments.fp8_models):
        if name not in entries:
            near = get_close_matches(name, entries, n=1)
            raise RequestError(
                "--fp8_models names no model of this run.",
                got=name,
                expected=", ".join(entries)
                or "models given by --model_paths or --model_id_with_origin_paths",
                mend=f"write it as there: {near[0]}" if near else None,
            )
        for component in _of_files(locate(entries[name]), pipe):
            if not store(component.load(whole=True), component.dtype):
                raise RequestError(
                    f"--fp8_models names {name}, of which nothing is frozen.", mend="take it off the list"
                )


def _of_files(paths: Sequence[Path], pipe: QwenImagePipeline) -> list[Component]:
    places = {path.resolve() for path in paths}
    components = [component for several in pipe.components.values() for component in several]
    return [
        c
        for c in components
        if places & {p for f in c.checkpoint.files for p in (f.resolve(), f.resolve().parent)}
    ]


def store(module: nn.Module, dtype: torch.dtype) -> int:
    """Keep the frozen weights of `module` in eight bits; the number of bytes saved. Trained weights stay."""
    saved = 0
    for layer in module.modules():
        # what is looked up is not multiplied: widening a whole table for a few rows would cost more than it saves
        found = {} if isinstance(layer, nn.Embedding) else dict(layer.named_parameters(recurse=False))
        frozen = {name: p for name, p in found.items() if _is_stored(p)}
        saved += sum(p.nbytes - p.numel() for p in frozen.values())
        held = {name: nn.Parameter(p.detach().to(STORED), requires_grad=False) for name, p in frozen.items()}
        if held:
            layer._parameters.update(held)
            layer.register_forward_pre_hook(partial(_widen, held=held, dtype=dtype))
            layer.register_forward_hook(partial(_narrow, held=held), always_call=True)
    return saved


def _is_stored(parameter: nn.Parameter) -> bool:
    wide = parameter.is_floating_point() and parameter.ndim >= 2 and min(parameter.shape[:2]) >= NARROW
    return wide and not parameter.requires_grad


def _widen(layer: nn.Module, _: Any, *, held: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
    for name, parameter in held.items():
        layer._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)


def _narrow(layer: nn.Module, *_: Any, held: dict[str, nn.Parameter]) -> None:
    layer._parameters.update(held)
