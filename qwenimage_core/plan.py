"""The plan: everything decided before the first step. Made by planner.py, shown by explain.py, run by loop.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenimage_core.adapters.lora import Adapter
    from qwenimage_core.context import Context
    from qwenimage_core.layout import Grid, Layout
    from qwenimage_core.models.backbone import BackboneDescription
    from qwenimage_core.registry import LoadedPlugin
    from qwenimage_core.values import (
        Apart,
        BranchName,
        Residual,
        Target,
        Tokens,
        TransformerOptions,
        Within,
    )


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Who gave what: a part of a plugin's line of `explain()`. `branch` None is of the whole run."""

    plugin: str
    hook: str
    what: str
    branch: BranchName | None = None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One side of guidance: its layout, and what stands behind each part of it.

    `text` holds the tokens of the text segments in the layout's order. Rules and residuals come with their plugin, so
    that a failure inside the loop can say whose it is.
    """

    name: BranchName
    layout: Layout
    text: tuple[Tokens, ...]
    rules: tuple[tuple[LoadedPlugin, Apart | Within], ...] = ()
    residuals: tuple[tuple[LoadedPlugin, Residual], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One prompt and its pictures (one a seed), ready to run or to train on.

    Nothing is computed yet: tensors wait in `Tokens`. `sigmas` has steps + 1 entries, the last 0. `images` are the
    appended image tokens in layout order; `start` are the tokens of `input_image`.
    """

    ctx: Context
    seeds: tuple[int, ...]
    target: Target
    grid: Grid
    sigmas: tuple[float, ...]
    positive: Branch
    negative: Branch | None
    images: tuple[Tokens, ...]
    start: Tokens | None
    options: TransformerOptions
    adapters: tuple[Adapter, ...]
    plugins: tuple[LoadedPlugin, ...]
    contributions: tuple[Contribution, ...]

    @property
    def request(self) -> Any:
        return self.ctx.request

    @property
    def prompt(self) -> str:
        return self.ctx.prompt

    @property
    def backbone(self) -> BackboneDescription:
        return self.ctx.backbone

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (self.positive,) if self.negative is None else (self.positive, self.negative)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1
