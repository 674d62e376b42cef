"""One layer with adapters: its class is mixed with `AdaptedLayer` while it has any, and given back with the last.

`add`, `set_strength` and `remove` are all there is to it; `lora.py` decides which layers and when. An `owner` is any
object that stands for one attached adapter.

Shape legend: O output and I input features, R rank; a Kronecker product has O = A C and I = B D.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import Change, Kronecker

Mode = Literal["hot", "merged"]


def is_wide(weight: Tensor) -> bool:
    """Whether sums and products can be computed in this dtype: floating point of 16 bits or more."""
    return weight.is_floating_point() and weight.element_size() >= 2


def can_merge(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return type(weight) is nn.Parameter and is_wide(weight) and not weight.is_meta


# --- side branches ------------------------------------------------------------------------------------------


class _Branch(nn.Module):
    """A side branch. Its tensors are buffers that are not saved: they follow the model to another device or dtype
    and never appear in a state dict. The factor is a tensor so that changing it does not recompile, and not a buffer
    so that a cast of the model does not round it."""

    factor: Tensor

    def __init__(self, owner: object, scale: float, strength: float, **tensors: Tensor) -> None:
        super().__init__()
        self.owner, self.scale = owner, scale
        self.set_strength(strength)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def set_strength(self, strength: float) -> None:
        self.factor = torch.tensor(strength * self.scale, dtype=torch.float32, device="cpu")


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


def _branch(
    layer: nn.Module, owner: object, change: Change, strength: float, example: Tensor | None
) -> _Branch:
    weight = getattr(layer, "weight", None) if example is None else example
    like: dict[str, Any] = {}
    if isinstance(weight, Tensor) and not weight.is_meta:
        like["device"] = weight.device
    if isinstance(weight, Tensor) and is_wide(weight):
        like["dtype"] = weight.dtype
    if isinstance(change, Kronecker):
        factors = {"left_AB": change.left_AB.to(**like), "right_CD": change.right_CD.to(**like)}
        return _KroneckerBranch(owner, change.scale, strength, **factors)
    pair = {"down_RI": change.down_RI.to(**like), "up_OR": change.up_OR.to(**like)}
    return _LowRankBranch(owner, change.scale, strength, **pair)


# --- the adapters of one layer --------------------------------------------------------------------------------------


@dataclass
class _Merged:
    """The changes in a weight, each with its strength, and the weight before all of them."""

    original: nn.Parameter
    entries: dict[object, tuple[Change, float]] = field(default_factory=dict)

    def weight(self, now: Tensor) -> nn.Parameter:
        """W + all changes, with the device and dtype of `now`. Always summed from the original in the order of
        attaching, so that after any detach the bits are those of never having attached what is gone."""
        if not self.entries:
            if (self.original.device, self.original.dtype) == (now.device, now.dtype):
                return self.original
            return nn.Parameter(self.original.detach().to(now), requires_grad=self.original.requires_grad)
        wide = torch.promote_types(now.dtype, torch.float32)
        total_OI = self.original.detach().to(now.device, wide)
        for change, strength in self.entries.values():
            total_OI = total_OI + strength * change.delta_OI().to(now.device)
        return nn.Parameter(total_OI.to(now.dtype), requires_grad=self.original.requires_grad)


class AdaptedLayer(nn.Module):
    """What a layer's class is mixed with while it has adapters."""

    branches: nn.ModuleList
    merged: _Merged | None
    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for branch in self.branches:
            y = y + branch(x)
        return y

    def owners(self) -> list[Any]:
        hot = [branch.owner for branch in self.branches if isinstance(branch, _Branch)]
        return hot + list(self.merged.entries if self.merged else ())


# One class for each layer class, so that code compiled for adapted layers is found again.
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _adapt(layer: Any) -> AdaptedLayer:
    if not isinstance(layer, AdaptedLayer):
        base = type(layer)
        layer.branches, layer.merged = nn.ModuleList(), None
        layer.__class__ = _CLASSES.setdefault(base, type(f"Adapted{base.__name__}", (AdaptedLayer, base), {}))
    return cast(AdaptedLayer, layer)


def is_adapted(model: nn.Module) -> bool:
    """Whether any layer has an adapter now."""
    return any(isinstance(layer, AdaptedLayer) for layer in model.modules())


def add(
    plain: nn.Module,
    owner: object,
    change: Change,
    strength: float,
    mode: Mode,
    like: Tensor | None = None,
) -> None:
    """`like` gives a side branch its dtype and device; without it the layer's weight does."""
    layer = _adapt(plain)
    if mode == "hot":
        layer.branches.append(_branch(layer, owner, change, strength, like))
        return
    layer.merged = layer.merged or _Merged(layer.weight)
    layer.merged.entries[owner] = (change, strength)
    layer.weight = layer.merged.weight(layer.weight)


def set_strength(layer: nn.Module, owner: object, strength: float) -> None:
    assert isinstance(layer, AdaptedLayer)
    if layer.merged and owner in layer.merged.entries:
        layer.merged.entries[owner] = (layer.merged.entries[owner][0], strength)
        layer.weight = layer.merged.weight(layer.weight)
    for branch in layer.branches:
        if isinstance(branch, _Branch) and branch.owner is owner:
            branch.set_strength(strength)


def remove(layer: nn.Module, owner: object) -> None:
    """Take one adapter off a layer, and give the layer its class back when none is left."""
    if not isinstance(layer, AdaptedLayer):
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
