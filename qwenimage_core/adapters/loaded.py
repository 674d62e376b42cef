"""The adapters of a pipeline: those loaded until they are cleared, and those of one run."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qwenimage_core.adapters.lora import Adapter, Attachment, attach, attached
from qwenimage_core.errors import AdapterError

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component


class LoadedAdapters:
    """Attaches adapters to the components they name. By name, in the order of loading."""

    def __init__(self, components: Mapping[str, Sequence[Component]]) -> None:
        self._components = components
        self._attached: dict[str, Attachment] = {}

    def __iter__(self) -> Iterator[Adapter]:
        """With the strengths of now."""
        return iter([replace(a.adapter, strength=a.strength) for a in self._attached.values()])

    def __contains__(self, name: str) -> bool:
        return name in self._attached

    def load(self, adapter: Adapter) -> None:
        if adapter.name in self._attached:
            raise AdapterError(
                f"A LoRA named {adapter.name!r} is loaded already.",
                mend="clear it first, or give this one another name",
            )
        module, like = self._place(adapter)
        self._attached[adapter.name] = attach(module, adapter, like)

    def clear(self, name: str | None = None) -> None:
        """Detach one, or all; the weights are bit for bit what they were."""
        if name is not None and name not in self._attached:
            raise AdapterError(
                f"There is no LoRA {name!r}.", expected=sorted(self._attached) or "none is loaded"
            )
        for each in [name] if name is not None else list(self._attached):
            self._attached.pop(each).detach()

    @contextmanager
    def during(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        """With these as well, for one run."""
        with ExitStack() as stack:
            for adapter in adapters:
                module, like = self._place(adapter)
                stack.enter_context(attached(module, [adapter], like))
            yield

    def state(self, more: Sequence[Adapter] = ()) -> Hashable:
        """Equal where the same adapters act with the same strengths; `more` are those of a run."""
        loaded = tuple((attachment, attachment.strength) for attachment in self._attached.values())
        return loaded, tuple((adapter, _changed(adapter)) for adapter in more)

    def names(self, more: Sequence[Adapter] = ()) -> list[str]:
        """Which adapters act, for messages; `more` are those of a run."""
        return [f"adapter {adapter.name}" for adapter in (*self, *more)]

    def _place(self, adapter: Adapter) -> tuple[nn.Module, torch.Tensor]:
        """The module to attach to, and a tensor as a side branch computes. A side branch never reads the weights, so
        that they need not be there yet."""
        if adapter.component not in self._components:
            raise AdapterError(
                f"There is no component {adapter.component!r} here.", expected=sorted(self._components)
            )
        component = self._components[adapter.component][0]
        if adapter.mode == "merged" and component.placement.managed:
            raise AdapterError(
                f"Adapter {adapter.name!r} cannot be merged into weights that come and go.",
                got=f"{adapter.component} waits on {component.placement.offload}",
                mend='use mode="hot"',
            )
        module = component.load(whole=True) if adapter.mode == "merged" else component.skeleton
        return module, torch.empty(0, dtype=component.dtype, device=component.device)


def _changed(adapter: Adapter) -> int | None:
    """When the file of an adapter was written last."""
    return Path(adapter.weights).stat().st_mtime_ns if isinstance(adapter.weights, str | Path) else None
