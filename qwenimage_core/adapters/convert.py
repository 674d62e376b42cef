"""Write `LoraWeights` in any writable format of the table, so that other programs read the same change."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import AdapterError

from .files import DIFFUSERS_METADATA, write
from .formats import BY_NAME, WRITABLE, KeyFormat, published_modules
from .weights import LoraWeights, LowRank

if TYPE_CHECKING:
    from torch import Tensor

INTERCHANGE = "comfyui"
"""The format that diffusers, ComfyUI, DiffSynth-Studio and this package all load."""


@dataclass(frozen=True)
class Converted:
    """Tensors and metadata ready to be written, and in words what could not be carried over as it was."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def save_lora(weights: LoraWeights, path: str | Path, to: str = INTERCHANGE) -> tuple[str, ...]:
    """Write the file atomically and return the notes of `convert`. The inverse is `files.load_lora`."""
    converted = convert(weights, to)
    write(Path(path), converted.tensors, converted.metadata)
    return converted.notes


def convert(weights: LoraWeights, to: str) -> Converted:
    """Keys, alphas and metadata of the format `to`. The change of every weight stays the same.

    An alpha is carried where the format can (a tensor, or peft's configuration in diffusers' metadata); elsewhere
    alpha / rank is multiplied into the down matrix, and a note says so. Formats that expect an alpha get alpha = rank
    for a layer without one. Metadata is kept but for the entries that state a scale, which are written anew.
    """
    if to not in WRITABLE:
        raise AdapterError(f"No LoRA format {to!r} can be written.", expected=", ".join(WRITABLE))
    row = BY_NAME[to]
    layers = _low_rank_layers(weights)
    _check_paths(row, layers)
    notes: list[str] = []
    metadata = {"format": "pt"} | {k: v for k, v in weights.metadata.items() if k != DIFFUSERS_METADATA}
    scaled = [name for name, layer in layers.items() if layer.scale != 1]
    if row.alpha == "metadata" and scaled:
        metadata[DIFFUSERS_METADATA] = json.dumps(_peft_config(layers), sort_keys=True)
    if row.alpha == "" and scaled:
        layers = {name: _folded(layer) for name, layer in layers.items()}
        notes.append(_fold_note(row, {name: weights.modules[name] for name in scaled}))
    return Converted(_tensors(row, layers), metadata, tuple(notes))


def _low_rank_layers(weights: LoraWeights) -> dict[str, LowRank]:
    layers = {name: change for name, change in weights.modules.items() if isinstance(change, LowRank)}
    if len(layers) < len(weights.modules):
        raise AdapterError(
            f"{weights.source} holds Kronecker products (LoKr), which no LoRA format can express.",
            mend="use the file as it is: it can be loaded and merged here",
        )
    return layers


def _check_paths(row: KeyFormat, layers: Mapping[str, LowRank]) -> None:
    """Underscored paths can be read back only where the reader knows the module names: the published ones."""
    if not row.flat:
        return
    numbers = [int(name.split(".")[1]) for name in layers if name.startswith("transformer_blocks.")]
    known = set(published_modules(max(numbers, default=-1) + 1))
    if strangers := [name for name in layers if name not in known]:
        raise AdapterError(
            f"{row.name} keys can only name layers of the published transformer.",
            got=", ".join(strangers[:5]),
            mend=f"convert to {INTERCHANGE} instead",
        )


def _tensors(row: KeyFormat, layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    import torch

    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[row.key(name, "down")] = layer.down_RI
        tensors[row.key(name, "up")] = layer.up_OR
        if "alpha" in row.parts:
            alpha = layer.rank if layer.alpha is None else layer.alpha
            tensors[row.key(name, "alpha")] = torch.tensor(float(alpha))
    return tensors


def _folded(layer: LowRank) -> LowRank:
    down = layer.down_RI
    return LowRank((down.float() * layer.scale).to(down.dtype), layer.up_OR)


def _fold_note(row: KeyFormat, scaled: Mapping[str, Any]) -> str:
    exact = all(math.frexp(layer.scale)[0] in (0.5, -0.5) for layer in scaled.values())
    dtypes = ", ".join(sorted({str(layer.down_RI.dtype).removeprefix("torch.") for layer in scaled.values()}))
    rounding = "exact: the scale is a power of two" if exact else f"rounded to {dtypes}"
    return f"{row.name} has no place for alpha: alpha / rank of {len(scaled)} layers is in lora_A now ({rounding})"


def _peft_config(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """peft's configuration of these layers as diffusers stores it: common values and exceptions by path."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: layer.rank if layer.alpha is None else layer.alpha for name, layer in layers.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
    }
    return {f"transformer.{key}": value for key, value in config.items()}


def _commonest(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]
