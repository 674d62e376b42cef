"""Four small plugins, one a conditioning hook, written as a third party would: on the public API alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qwenimage_core import (
    AttentionRules,
    Condition,
    Context,
    FieldsModel,
    ImageSegment,
    Layout,
    Picture,
    Residual,
    TextSegment,
    Within,
    hookimpl,
)


class Chorus:
    """`condition`: more prompts beside the prompt, in the positive branch."""

    NAME = "chorus"

    class Fields(FieldsModel):
        chorus: list[str] | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def condition(self, ctx: Context) -> Condition:
        voices = [ctx.encode_prompt(prompt) for prompt in ctx.request.chorus]
        return Condition(text=tuple(TextSegment(name=f"voice/{i}", positive=v) for i, v in enumerate(voices)))


class Memo:
    """`latent_concat`: a picture to look at."""

    NAME = "memo"

    class Fields(FieldsModel):
        memo_image: Picture | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def latent_concat(self, ctx: Context) -> Sequence[ImageSegment]:
        return [ImageSegment(name="memo", tokens=ctx.encode_picture(ctx.request.memo_image), rank=200)]


class Blinkers:
    """`attention_mask`: the prompt sees, and is seen by, the upper part of the picture only."""

    NAME = "blinkers"

    class Fields(FieldsModel):
        blinkers: float | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def attention_mask(self, ctx: Context, layout: Layout) -> AttentionRules:
        grid = layout["noise"].grid
        assert grid is not None
        rows = torch.arange(grid.height) < grid.height * ctx.request.blinkers
        return AttentionRules((Within("prompt", "noise", rows[:, None].expand(-1, grid.width)),))


class Nudge:
    """`residual_inject`: a push on the noise tokens after the first block, scaled."""

    NAME = "nudge"

    class Fields(FieldsModel):
        nudge: float | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def residual_inject(self, ctx: Context) -> Sequence[Residual]:
        def delta(block: int, step: int, tokens: torch.Tensor, *inputs: Any) -> torch.Tensor:
            return ctx.request.nudge * torch.tanh(tokens.roll(1, dims=-1))

        return [Residual(name="nudge", delta=delta, blocks=(0,))]
