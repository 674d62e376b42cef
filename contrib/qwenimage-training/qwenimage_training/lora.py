"""LoRA for training, by peft, and its file: chosen layers, a start from a file, and the interchange form for saving.

N tokens of all samples, O output and I input features of a layer, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwenimage_core.adapters.convert import save_lora
from qwenimage_core.adapters.files import load_lora
from qwenimage_core.adapters.weights import LoraWeights, LowRank
from qwenimage_core.errors import AdapterError, RequestError
from qwenimage_training.data.arguments import names
from qwenimage_training.settings import TARGETS

if TYPE_CHECKING:
    from qwenimage_training.arguments import TrainingArguments

ADAPTER = "default"
LARGE = 512  # the smaller side of a layer that an empty list of targets picks


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def find_targets(model: nn.Module, text: str) -> list[str]:
    """Paths of the layers that a comma list means: each entry is the end of a path, or, alone, a pattern of whole
    paths. Empty text means every large linear layer of the blocks. An entry that matches nothing is an error."""
    layers = linear_layers(model)
    if not text.strip():
        return _large_layers(model, layers)
    entries = names(text)
    found: set[str] = set()
    for entry in entries:
        matching = {name for name in layers if name == entry or name.endswith("." + entry)}
        if not matching and len(entries) == 1 and (pattern := _pattern(entry)):
            matching = {name for name in layers if pattern.fullmatch(name)}
        if not matching:
            raise _no_match(entry, layers)
        found |= matching
    return [name for name in layers if name in found]


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text)
    except re.error:
        return None


def _large_layers(model: nn.Module, layers: Mapping[str, nn.Linear]) -> list[str]:
    lists = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    blocks = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
    found = [
        name
        for name, layer in layers.items()
        if any(name.startswith(block + ".") for block in blocks)
        and min(layer.in_features, layer.out_features) >= LARGE
    ]
    if not found:
        raise RequestError(
            f"An empty --lora_target_modules picks linear layers with at least {LARGE} features; this model has none.",
            mend=f"name them: {','.join(TARGETS)}",
        )
    return found


def _no_match(entry: str, layers: Iterable[str]) -> RequestError:
    endings = {re.sub(r"^.*?\.\d+\.", "", name) for name in layers}
    endings |= {name.rpartition(".")[2] for name in endings if not name.rpartition(".")[2].isdigit()}
    near = get_close_matches(entry, sorted(endings), n=5, cutoff=0.3)
    return RequestError(
        f"--lora_target_modules: {entry!r} matches no linear layer of this model.",
        got=entry,
        expected="the end of a layer's name; the nearest are " + ", ".join(near or sorted(endings)[:12]),
        mend=f"the published list is {','.join(TARGETS)} (--mode lora gives it)",
    )


def inject(model: nn.Module, arguments: TrainingArguments) -> list[str]:
    """Put fresh LoRA layers into `model`, in place; the paths of the adapted layers. Up matrices begin at zero, down
    matrices are drawn from the seed. Everything but the LoRA is frozen; the LoRA is float32, whatever the model is."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = find_targets(model, arguments.lora_target_modules)
    config = LoraConfig(r=arguments.lora_rank, lora_alpha=arguments.alpha, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        inject_adapter_in_model(config, model)
    for layer in lora_layers(model).values():
        layer.lora_A.float(), layer.lora_B.float()
        parts = layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
        layer.forward = partial(_forward, *parts)
    return targets


def _forward(base: nn.Linear, down: nn.Linear, up: nn.Linear, scale: float, x: Tensor) -> Tensor:
    """What peft's layer computes for one LoRA without dropout. With all tokens on one axis, three products are three
    operations, of which the last adds up: that is much of a step where matrices are small."""
    if not _plain((base, down, up), x.dtype):
        inner = down(x.to(down.weight.dtype))
        changed = up(inner if scale == 1 else inner * scale)  # the scale on R features instead of O
        plain = base(x)
        return plain + changed.to(plain.dtype)
    x_NI = x.reshape(-1, x.shape[-1])
    plain_NO = F.linear(x_NI, base.weight, base.bias)
    changed_NO = torch.addmm(plain_NO, x_NI @ down.weight.t(), up.weight.t(), alpha=scale)
    return changed_NO.view(*x.shape[:-1], -1)


def _plain(layers: Iterable[nn.Linear], dtype: torch.dtype) -> bool:
    """Whether the matrices are there in one dtype. Engines and storage that put weights in place only while a layer
    runs do so by hooks, and those want layers to be called."""
    return not any(m._forward_pre_hooks or m._forward_hooks or m.weight.dtype != dtype for m in layers)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Path -> peft's layer around it."""
    return {n: m for n, m in model.named_modules() if ADAPTER in getattr(m, "lora_A", {})}


def start_from(model: nn.Module, path: str | Path, rank: int) -> None:
    """Give the LoRA in `model` the values of a file, whatever format it has. The file must be of the same rank and
    name the same layers."""
    layers = lora_layers(model)
    weights = load_lora(path, list(layers))
    if missing := [name for name in layers if name not in weights.modules]:
        raise AdapterError(
            f"{weights.source} does not change every layer that is to be trained.",
            got=f"{len(missing)} of {len(layers)} are missing: {', '.join(missing[:5])}",
            mend="give --lora_target_modules the layers of the file (`qwenimage lora inspect` lists them)",
        )
    for name, change in weights.modules.items():
        if not isinstance(change, LowRank) or change.rank != rank:
            got = f"rank {change.rank}" if isinstance(change, LowRank) else "a Kronecker product (LoKr)"
            raise AdapterError(
                f"{weights.source}: {name} cannot be trained on from here.",
                got=got,
                expected=f"rank {rank}, as --lora_rank says",
            )
        layer = layers[name]
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.copy_(change.down_RI)
            # the layer multiplies by its own scale, so that of the file goes into the up matrix
            layer.lora_B[ADAPTER].weight.copy_(change.up_OR.float() * (change.scale / layer.scaling[ADAPTER]))


def fuse(model: nn.Module, path: str | Path) -> None:
    """Add a LoRA to the weights for good: what differential training starts from."""
    layers = linear_layers(model)
    for name, change in load_lora(path, list(layers)).modules.items():
        weight = layers[name].weight
        with torch.no_grad():
            weight.copy_(weight.float() + change.delta_OI().to(weight.device))


def save(
    path: Path,
    model: nn.Module,
    values: Callable[[nn.Parameter], Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write the LoRA of `model` in the form that diffusers, ComfyUI and DiffSynth-Studio load. `values` gives what is
    to be saved of a parameter (itself, or its average)."""
    changes = {}
    for name, layer in lora_layers(model).items():
        down, up = (
            values(pair[ADAPTER].weight).detach().cpu().to(dtype) for pair in (layer.lora_A, layer.lora_B)
        )
        rank = down.shape[0]
        alpha = layer.scaling[ADAPTER] * rank
        changes[name] = LowRank(down, up, None if alpha == rank else alpha)
    save_lora(LoraWeights(changes, metadata=dict(metadata)), path)
