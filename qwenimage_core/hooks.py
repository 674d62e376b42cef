"""The hooks of qwenimage: four that condition a generation and seven that support them. Read this file first.

A plugin is any module or object with functions of these names, marked `@hookimpl`. It may take any subset of the
arguments, by name. It names itself with `NAME` (default: its module name) and states the hook API it was written for
with `HOOK_API = ">=1.0,<2"`. Hooks run while a plan is made, never inside the denoising loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer
    from pydantic import BaseModel
    from torch import Tensor

    from qwenimage_core.context import Context
    from qwenimage_core.layout import Layout
    from qwenimage_core.loading.recognise import ComponentSpec
    from qwenimage_core.values import AttentionRules, Condition, ImageSegment, Recipe, Residual

HOOK_API = (1, 0)
PROJECT = "qwenimage"
ENTRY_POINT_GROUP = "qwenimage.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

CONDITIONING_HOOKS = ("condition", "latent_concat", "attention_mask", "residual_inject")


# --- conditioning: called for the plugins that are active in a run, in this order ---------------------------------


@hookspec
def condition(ctx: Context) -> Condition | None:
    """Give text segments, a replacement prompt encoding, adapters, a schedule, the target's shape, run options."""


@hookspec
def latent_concat(ctx: Context) -> Sequence[ImageSegment] | None:
    """Give image segments that are appended after the noise tokens."""


@hookspec
def attention_mask(ctx: Context, layout: Layout) -> AttentionRules | None:
    """Say which segments of this branch's layout may see which. Called once for each branch."""


@hookspec
def residual_inject(ctx: Context, layout: Layout) -> Sequence[Residual] | None:
    """Give deltas that are added to a segment's tokens after transformer blocks."""


# --- supporting ---------------------------------------------------------------------------------------------------


@hookspec
def request_fields() -> type[BaseModel]:
    """Give the pydantic model of the request fields this plugin adds. Giving one of them activates the plugin."""


@hookspec
def request_defaults(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give values for request fields that the caller left open. `given` is what the caller gave, not yet validated,
    with at least one field of this plugin. They stand above the model's own defaults."""


@hookspec
def check_request(ctx: Context) -> None:
    """Refuse, with a RequestError, a request that this plugin cannot serve with the loaded components."""


@hookspec
def components() -> Sequence[ComponentSpec]:
    """Give the components (models with weights) this plugin brings, and how their checkpoints are recognised."""


@hookspec
def commands(app: typer.Typer) -> None:
    """Add sub-commands to the `qwenimage` command line."""


@hookspec
def recipes() -> Sequence[Recipe]:
    """Give the named model recipes this plugin owns."""


@hookspec
def decode(ctx: Context, latents: Tensor) -> list[object] | None:
    """Turn final latents (frames, channels, height/8, width/8) of one sample into pictures, instead of one RGB
    picture a frame. At most one active plugin may do so."""
