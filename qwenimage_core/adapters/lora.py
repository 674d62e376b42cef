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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qwenimage_core.errors import AdapterError

from .diagnose import explain_strangers
from .layer import AdaptedLayer, Mode, add, can_merge, remove, set_strength
from .weights import Change, LoraWeights

__all__ = ["Adapter", "Attachment", "Mode", "attach", "attached"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter and how to apply it: what a `condition` hook returns for one run, and what `load_lora` keeps.

    `weights` is a path, weights made in memory, or a function that makes them, which is called each time the adapter is
    attached: so a hook gives an adapter without computing anything. `name` is unique on a model. `strength` multiplies
    the weights' own scale; `component` is the model they belong to.
    """

    name: str
    weights: LoraWeights | str | Path | Callable[[], LoraWeights]
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
        if isinstance(self.weights, str | Path):
            from .files import load_lora

            return load_lora(self.weights, names)
        weights = self.weights if isinstance(self.weights, LoraWeights) else self.weights()
        known = set(names)
        strangers = [name for name in weights.modules if name not in known]
        if strangers or not weights.modules:
            raise explain_strangers(weights.source, strangers, len(weights.modules), names, names)
        return weights


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
            set_strength(layer, self, strength)
        self._strength = strength

    def detach(self) -> None:
        """Safe to call again, also after an interrupt half way: what is already undone stays undone."""
        while self._layers:
            remove(self._layers[-1], self)
            self._layers.pop()

    def _install(self, places: Sequence[tuple[nn.Module, Change]], like: Tensor | None) -> None:
        for layer, change in places:
            self._layers.append(layer)  # first, so that an interrupt in the next line is undone too
            add(layer, self, change, self.strength, self.adapter.mode, like)


def attach(model: nn.Module, adapter: Adapter, like: Tensor | None = None) -> Attachment:
    """Attach to every layer the adapter names. All checks come before the first change; a failure changes nothing.

    Side branches get the dtype and device of `like`, else of each layer's weight; a layer whose weight is not in memory
    is of no help there.
    """
    weights = adapter.read(model)
    places = _places(model, adapter, weights)
    attachment = Attachment(adapter)
    try:
        attachment._install(places, like)
    except BaseException:
        attachment.detach()
        raise
    return attachment


@contextmanager
def attached(
    model: nn.Module, adapters: Sequence[Adapter], like: Tensor | None = None
) -> Iterator[list[Attachment]]:
    """Attach for the duration of a run. However the run ends, the model is as it was before."""
    with ExitStack() as stack:
        attachments = []
        for adapter in adapters:
            attachment = attach(model, adapter, like)
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
    if isinstance(layer, AdaptedLayer) and adapter.name in [owner.adapter.name for owner in layer.owners()]:
        raise AdapterError(
            f"An adapter named {adapter.name!r} is already attached.",
            mend="detach it first or name the other apart",
        )
    if "forward" in vars(layer):
        raise AdapterError(
            f"{name}: another library has replaced this layer's forward, so an adapter could not act.",
            mend="attach the adapter before the model is wrapped",
        )
    if adapter.mode == "merged" and not can_merge(layer):
        raise AdapterError(
            f"{name}: adapter {adapter.name!r} cannot be merged into this weight.",
            got=_describe(getattr(layer, "weight", None)),
            expected="a floating-point weight of at least 16 bits, in memory",
            mend='use mode="hot"',
        )


def _describe(weight: Any) -> str:
    return f"{type(weight).__name__} of {weight.dtype}" if isinstance(weight, Tensor) else str(weight)
