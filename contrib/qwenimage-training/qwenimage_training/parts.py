"""What can be trained, by its published name: a component of the pipeline, or a module inside one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

    from qwenimage_core.loading.components import Component

KINDS = {"dit": "transformer"}
"""Published names that differ from ours; every other component is called what it is."""
PUBLISHED = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Part:
    """A component, or the module at `path` inside it."""

    name: str
    component: Component
    path: str
    index: int = 0

    @property
    def module(self) -> nn.Module:
        whole: nn.Module = self.component.load(whole=True)
        return whole.get_submodule(self.path)

    @property
    def key(self) -> tuple[str, int]:
        return self.component.spec.kind, self.index

    @property
    def prefix(self) -> str:
        """What stands before the component's own tensor names in published checkpoints, before it is taken off."""
        kind = self.component.spec.kind
        numbered = f"models.{self.index}." if self.component.spec.many else ""
        return f"pipe.{PUBLISHED.get(kind, kind)}.{numbered}"


def find_part(name: str, components: Mapping[str, Sequence[Component]]) -> Part:
    """`dit`, `text_encoder`, `blockwise_controlnet.models.1`, `dit.transformer_blocks.0`, ... as a part."""
    first, *rest = name.removeprefix("pipe.").split(".")
    several = components.get(KINDS.get(first, first), ())
    if not several:
        there = sorted(PUBLISHED.get(kind, kind) for kind in components)
        near = get_close_matches(first, there, n=1)
        raise RequestError(
            f"There is no model {first!r} to train.",
            got=name,
            expected=", ".join(there),
            mend=f"did you mean {near[0]!r}?" if near else "give its files among the models",
        )
    index = 0
    if several[0].spec.many and rest[:1] == ["models"] and len(rest) > 1 and rest[1].isdigit():
        index, rest = int(rest[1]), rest[2:]
    if index >= len(several):
        raise RequestError(
            f"There is no {first} number {index}.", got=name, expected=f"0 to {len(several) - 1}"
        )
    part = Part(name, several[index], ".".join(rest), index)
    try:
        part.component.skeleton.get_submodule(part.path)
    except AttributeError as error:
        inside = ", ".join(child for child, _ in part.component.skeleton.named_children())
        raise RequestError(f"{first} has no module {part.path!r}.", got=name, expected=inside) from error
    return part
