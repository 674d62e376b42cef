"""Attaching adapters to a model, and detaching them exactly.

Two modes, both over any layer with `in_features` and `out_features`:
- hot: a side branch, y = layer(x) + strength * scale * up(down(x)). The layer's weight is never read, so it works over
  quantised and streamed weights and costs only the adapter's memory.
- merged: the weight becomes W + strength * scale * up @ down, summed in float32 and rounded once. No cost per step; the
  original weight is kept for the detach, so memory holds the adapted weights twice.

Why not peft's layers: they replace each Linear by a wrapper with the Linear inside, which renames its tensors
(`to_q.base_layer.weight`) and so breaks loading, saving and streaming by published name; their merge is undone by
subtraction, which does not restore the bits; and they serve only the layer types that peft knows. Here the layer
object stays in place and changes its class, as torch's own parametrizations do: `state_dict()` keeps its names and
values, compiled code sees another type and recompiles, a detach gives the class back. peft remains the tool for
training and the oracle of the tests.

Shape legend: O output and I input features, R rank; a Kronecker product has O = A C and I = B D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwenimage_core.errors import AdapterError

from .diagnose import explain_strangers
from .files import load_lora
from .weights import Change, Kronecker, LoraWeights

Mode = Literal["hot", "merged"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter and how to apply it: what a `condition` hook returns for one run, and what `load_lora` keeps.

    `weights` is a path, or weights made at run time. `name` is unique on a model. `strength` multiplies the file's own
    scale; `component` is the model it belongs to.
    """

    name: str
    weights: LoraWeights | str | Path
    strength: float = 1.0
    component: str = "transformer"
    mode: Mode = "hot"

    def __post_init__(self) -> None:
        _check_strength(self.name, self.strength)
        if self.mode not in ("hot", "merged"):
            raise AdapterError(
                f"Adapter {self.name!r} has no such mode.", got=self.mode, expected="hot or merged"
            )

    def read(self, model: nn.Module) -> LoraWeights:
        """The weights with the paths of `model`'s modules; AdapterError when any of them has no place there."""
        names = [name for name, _ in _modules(model)]
        if not isinstance(self.weights, LoraWeights):
            return load_lora(self.weights, names)
        known = set(names)
        strangers = [name for name in self.weights.modules if name not in known]
        if strangers or not self.weights.modules:
            raise explain_strangers(self.weights.source, strangers, len(self.weights.modules), names, names)
        return self.weights


class Attachment:
    """One adapter on one model. `detach` restores what was there without it; others on the same model stay."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._layers: list[nn.Module] = []
        self._strength = adapter.strength

    @property
    def strength(self) -> float:
        return self._strength

    @property
    def attached(self) -> bool:
        return bool(self._layers)

    def set_strength(self, strength: float) -> None:
        """Takes effect at the next forward; nothing is loaded again."""
        _check_strength(self.adapter.name, strength)
        if not self._layers:
            raise AdapterError(
                f"Adapter {self.adapter.name!r} is not attached any more.", mend="attach it again"
            )
        for layer in self._layers:
            _set_strength(layer, self, strength)
        self._strength = strength

    def detach(self) -> None:
        """Safe to call again, also after an interrupt half way: what is already undone stays undone."""
        while self._layers:
            _remove(self._layers[-1], self)
            self._layers.pop()

    def _install(self, places: Sequence[tuple[nn.Module, Change]]) -> None:
        for layer, change in places:
            self._layers.append(layer)  # first, so that an interrupt in the next line is undone too
            _add(layer, self, change)


def attach(model: nn.Module, adapter: Adapter) -> Attachment:
    """Attach to every layer the adapter names. All checks come before the first change; a failure changes nothing."""
    weights = adapter.read(model)
    places = _places(model, adapter, weights)
    attachment = Attachment(adapter)
    try:
        attachment._install(places)
    except BaseException:
        attachment.detach()
        raise
    return attachment


@contextmanager
def attached(
    models: nn.Module | Mapping[str, nn.Module], adapters: Sequence[Adapter]
) -> Iterator[list[Attachment]]:
    """Attach for the duration of a run. However the run ends, the models are as they were before.

    `models` maps the adapters' components to their models, or is the one model that all of them are for.
    """
    with ExitStack() as stack:
        attachments = []
        for adapter in adapters:
            model = models if isinstance(models, nn.Module) else models[adapter.component]
            attachment = attach(model, adapter)
            stack.callback(attachment.detach)
            attachments.append(attachment)
        yield attachments


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_strength(name: str, strength: float) -> None:
    if not math.isfinite(strength):
        raise AdapterError(f"The strength of adapter {name!r} is not a number.", got=strength)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path as published, module). torch.compile wraps modules in one named `_orig_mod`."""
    for name, module in model.named_modules():
        yield name.replace("_orig_mod.", ""), module


def _places(model: nn.Module, adapter: Adapter, weights: LoraWeights) -> list[tuple[nn.Module, Change]]:
    modules = dict(_modules(model))
    places = [(modules[name], change) for name, change in weights.modules.items()]
    for name, change in weights.modules.items():
        _check_layer(f"{weights.source}: {name}", modules[name], change)
        _check_state(name, modules[name], adapter)
    return places


def _check_layer(where: str, layer: nn.Module, change: Change) -> None:
    features = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
    if None in features:
        raise AdapterError(
            f"{where} is no linear layer.", got=type(layer).__name__, expected="a linear layer"
        )
    if features != change.shape:
        raise AdapterError(
            f"{where} has another shape than the adapter's change.",
            got=f"(out, in) = {change.shape}",
            expected=f"{features}",
            mend="this LoRA was made for a model of another width",
        )


def _check_state(name: str, layer: nn.Module, adapter: Adapter) -> None:
    if isinstance(layer, _Adapted) and adapter.name in [owner.adapter.name for owner in layer.owners()]:
        raise AdapterError(
            f"An adapter named {adapter.name!r} is already attached.",
            mend="detach it first or name the other apart",
        )
    if "forward" in vars(layer):
        raise AdapterError(
            f"{name}: another library has replaced this layer's forward, so an adapter could not act.",
            mend="attach the adapter before the model is wrapped",
        )
    if adapter.mode == "merged" and not _can_merge(getattr(layer, "weight", None)):
        raise AdapterError(
            f"{name}: adapter {adapter.name!r} cannot be merged into this weight.",
            got=_describe(getattr(layer, "weight", None)),
            expected="a floating-point weight of at least 16 bits, in memory",
            mend='use mode="hot"',
        )


def _can_merge(weight: Any) -> bool:
    return type(weight) is nn.Parameter and _is_wide(weight) and not weight.is_meta


def _is_wide(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.element_size() >= 2


def _describe(weight: Any) -> str:
    return f"{type(weight).__name__} of {weight.dtype}" if isinstance(weight, Tensor) else str(weight)


# --- side branches --------------------------------------------------------------------------------------------------


class _Branch(nn.Module):
    """A side branch. Its tensors are buffers that are not saved: they follow the model to another device or dtype
    and never appear in a state dict. The factor is a tensor so that changing it does not recompile, and not a buffer
    so that a cast of the model does not round it."""

    def __init__(self, owner: Attachment, scale: float, **tensors: Tensor) -> None:
        super().__init__()
        self.owner, self.scale = owner, scale
        self.factor = torch.tensor(owner.strength * scale)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


class _LowRankBranch(_Branch):
    down_RI: Tensor
    up_OR: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down_RI.to(x)) * self.factor, self.up_OR.to(x))


class _KroneckerBranch(_Branch):
    left_AB: Tensor
    right_CD: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """kron(left, right) @ x without the product: with x as a (B, D) matrix, it is left @ x @ right.T."""
        x_BD = x.unflatten(-1, (self.left_AB.shape[1], self.right_CD.shape[1]))
        y_AC = self.left_AB.to(x) @ F.linear(x_BD, self.right_CD.to(x)) * self.factor
        return y_AC.flatten(-2)


def _branch(layer: nn.Module, owner: Attachment, change: Change) -> _Branch:
    weight = getattr(layer, "weight", None)
    like: dict[str, Any] = {}
    if isinstance(weight, Tensor) and not weight.is_meta:
        like["device"] = weight.device
    if isinstance(weight, Tensor) and _is_wide(weight):
        like["dtype"] = weight.dtype
    if isinstance(change, Kronecker):
        left, right = change.left_AB.to(**like), change.right_CD.to(**like)
        return _KroneckerBranch(owner, change.scale, left_AB=left, right_CD=right)
    return _LowRankBranch(
        owner, change.scale, down_RI=change.down_RI.to(**like), up_OR=change.up_OR.to(**like)
    )


# --- the adapters of one layer --------------------------------------------------------------------------------------


@dataclass
class _Merged:
    """The changes in a weight, each with its strength, and the weight before all of them."""

    original: nn.Parameter
    entries: dict[Attachment, tuple[Change, float]] = field(default_factory=dict)

    def weight(self, now: Tensor) -> nn.Parameter:
        """W + all changes, with the device and dtype of `now`. Always summed from the original in the order of
        attaching, so that after any detach the bits are those of never having attached what is gone."""
        if not self.entries:
            if (self.original.device, self.original.dtype) == (now.device, now.dtype):
                return self.original
            return nn.Parameter(self.original.detach().to(now), requires_grad=self.original.requires_grad)
        total_OI = self.original.detach().to(now.device, torch.float32)
        for change, strength in self.entries.values():
            total_OI = total_OI + strength * change.delta_OI().to(now.device)
        return nn.Parameter(total_OI.to(now.dtype), requires_grad=self.original.requires_grad)


class _Adapted(nn.Module):
    """What a layer's class is mixed with while it has adapters."""

    branches: nn.ModuleList
    merged: _Merged | None
    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for branch in self.branches:
            y = y + branch(x)
        return y

    def owners(self) -> list[Attachment]:
        hot = [branch.owner for branch in self.branches if isinstance(branch, _Branch)]
        return hot + list(self.merged.entries if self.merged else ())


# One class for each layer class, so that code compiled for adapted layers is found again.
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _adapt(layer: Any) -> _Adapted:
    if not isinstance(layer, _Adapted):
        base = type(layer)
        layer.branches, layer.merged = nn.ModuleList(), None
        layer.__class__ = _CLASSES.setdefault(base, type(f"Adapted{base.__name__}", (_Adapted, base), {}))
    return cast(_Adapted, layer)


def _add(plain: nn.Module, owner: Attachment, change: Change) -> None:
    layer = _adapt(plain)
    if owner.adapter.mode == "hot":
        layer.branches.append(_branch(layer, owner, change))
        return
    layer.merged = layer.merged or _Merged(layer.weight)
    layer.merged.entries[owner] = (change, owner.strength)
    layer.weight = layer.merged.weight(layer.weight)


def _set_strength(layer: nn.Module, owner: Attachment, strength: float) -> None:
    assert isinstance(layer, _Adapted)
    if layer.merged and owner in layer.merged.entries:
        layer.merged.entries[owner] = (layer.merged.entries[owner][0], strength)
        layer.weight = layer.merged.weight(layer.weight)
    for branch in layer.branches:
        if isinstance(branch, _Branch) and branch.owner is owner:
            branch.factor = torch.tensor(strength * branch.scale)


def _remove(layer: nn.Module, owner: Attachment) -> None:
    """Take one adapter off a layer, and give the layer its class back when none is left."""
    if not isinstance(layer, _Adapted):
        return
    kept = [branch for branch in layer.branches if isinstance(branch, _Branch) and branch.owner is not owner]
    layer.branches = nn.ModuleList(kept)
    if layer.merged:
        layer.merged.entries.pop(owner, None)
        layer.weight = layer.merged.weight(layer.weight)
        if not layer.merged.entries:
            layer.merged = None
    if not kept and layer.merged is None:
        layer.__class__ = type(layer).__bases__[1]
        del layer.branches, layer.merged
