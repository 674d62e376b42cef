"""EliGen: entities with prompts of their own, each in its own area of the picture.

The entities' texts stand before the prompt. An entity and the picture see each other only inside the entity's mask;
entities and the prompt never see each other; the prompt and the whole picture see each other as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.layout import NOISE
from qwenimage_core.values import Apart, AttentionRules, Condition, Recipe, TextSegment, Within
from qwenimage_eligen.fields import Fields
from qwenimage_eligen.recipes import RECIPES

if TYPE_CHECKING:
    from qwenimage_core.context import Context
    from qwenimage_core.layout import Layout

NAME = "eligen"
HOOK_API = ">=1.0,<2"


def entity_name(number: int) -> str:
    """Name of the text segment of an entity, counted from 1."""
    return f"entity {number}"


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    """Refuse a mask that is empty at the picture's latent size, and a choice about a branch that does not run."""
    if ctx.request.eligen_enable_on_negative and not ctx.guided:
        raise RequestError(
            "eligen_enable_on_negative does nothing at cfg_scale 1: there is no negative branch.",
            mend="raise cfg_scale, or leave it out",
        )
    from qwenimage_eligen.masks import entity_maps

    multiple = ctx.backbone.size_multiple
    entity_maps(ctx, ctx.request.height // multiple, ctx.request.width // multiple)


@hookimpl
def condition(ctx: Context) -> Condition:
    """A text segment an entity. On the negative branch, where asked for, each is a copy of the negative prompt."""
    on_negative = ctx.request.eligen_enable_on_negative
    return Condition(
        text=tuple(
            TextSegment(
                name=entity_name(i),
                positive=ctx.encode_prompt(prompt),
                negative="prompt" if on_negative else None,
            )
            for i, prompt in enumerate(ctx.request.eligen_entity_prompts, 1)
        )
    )


@hookimpl
def attention_mask(ctx: Context, layout: Layout) -> AttentionRules | None:
    """Entities apart from all other text, and within their area of every image segment.

    Appended segments carry the same picture plane: an entity's area on them is its area on the target, resampled to
    their grid.
    """
    entities = [entity_name(i) for i, _ in enumerate(ctx.request.eligen_entity_prompts, 1)]
    entities = [name for name in entities if name in layout]
    if not entities:
        return None
    from qwenimage_eligen.masks import entity_maps, resample

    grid = layout[NOISE].grid
    assert grid is not None  # image segments have one
    maps = entity_maps(ctx, grid.height, grid.width)
    others = [s.name for s in layout.text if s.name not in entities]
    apart = [Apart(a, b) for i, a in enumerate(entities) for b in (*entities[i + 1 :], *others)]
    within = [
        Within(name, image.name, resample(where, image.grid.height, image.grid.width))
        for name, where in zip(entities, maps, strict=True)
        for image in layout.images
        if image.grid is not None
    ]
    return AttentionRules((*apart, *within))
