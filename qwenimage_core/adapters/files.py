"""LoRA files: read from safetensors only, with what their metadata says about alpha; written beside and renamed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import AdapterError
from qwenimage_core.writing import whole_file

from .parse import AlphaOf, parse
from .weights import LoraWeights

if TYPE_CHECKING:
    from torch import Tensor

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration: a JSON object whose keys start with the component's name."""

PEFT_CONFIG = "adapter_config.json"


def load_lora(path: str | Path, modules: Collection[str] | None = None) -> LoraWeights:
    """Read a LoRA: a safetensors file, or a folder that holds just one. `modules` are the module paths of the model it
    is for; without them dotted paths are believed.

    Tensors stay as they are in the file; nothing is folded. LoadError for a file that is missing, damaged or a pickle,
    AdapterError for content that does not fit (see `parse.parse`).
    """
    from qwenimage_core.loading.checkpoint import Checkpoint  # with the decoders of every weight format

    checkpoint = Checkpoint.open(path)
    file = checkpoint.files[0]
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    alpha_of = _alpha_of(file, checkpoint.metadata)
    return parse(tensors, modules, metadata=checkpoint.metadata, alpha_of=alpha_of, source=file.name)


def _alpha_of(file: Path, metadata: Mapping[str, str]) -> AlphaOf | None:
    """What diffusers' metadata, or peft's configuration beside the file, says about alpha."""
    if DIFFUSERS_METADATA in metadata:
        config = _json(file.name, metadata[DIFFUSERS_METADATA])
        return _peft_alpha(
            file.name, {key.removeprefix("transformer."): value for key, value in config.items()}
        )
    beside = file.parent / PEFT_CONFIG
    if file.name == "adapter_model.safetensors" and beside.is_file():
        return _peft_alpha(file.name, _json(str(beside), beside.read_text(encoding="utf-8")))
    return None


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise AdapterError(f"{where}: its adapter configuration is not JSON.", got=error) from error
    if not isinstance(value, dict):
        raise AdapterError(f"{where}: its adapter configuration is not a JSON object.", got=text[:80])
    return value


def _peft_alpha(source: str, config: Mapping[str, Any]) -> AlphaOf | None:
    """peft's rule: the scale is lora_alpha / r (or / sqrt(r) for rank-stabilised LoRA), and patterns, matched against
    the end of the path, override lora_alpha for single layers."""
    if config.get("use_dora"):
        raise AdapterError(f"{source} is a DoRA, which is not supported.", got="use_dora in its metadata")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise AdapterError(
            f"{source} was saved by peft as {kind}, whose scale is not read here.",
            expected="LORA",
            mend="merge it with peft, or save it in LyCORIS form with an alpha tensor a layer",
        )
    if (default := config.get("lora_alpha")) is None:
        return None
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}

    def alpha(module: str, rank: int) -> float:
        own = next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
        return float(own) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)

    return alpha


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: a reader sees the old file or the whole new one."""
    from safetensors.torch import save_file

    with whole_file(path) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, dict(metadata))
