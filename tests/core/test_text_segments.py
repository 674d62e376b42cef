"""Text segments that stand for the branch's own prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qwenimage_core import Condition, Context, FieldsModel, QwenImagePipeline, TextSegment, hookimpl


class Echo:
    """Says the prompt of each branch once more; `loudly` also replaces how prompts are encoded."""

    NAME = "echo"

    class Fields(FieldsModel):
        echo: bool | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def condition(self, ctx: Context) -> Condition:
        return Condition(text=(TextSegment(name="echo", positive="prompt", negative="prompt"),))


class Loud:
    """Replaces how prompts are encoded."""

    NAME = "loud"

    class Fields(FieldsModel):
        loud: bool | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def condition(self, ctx: Context) -> Condition:
        return Condition(encode_prompt=lambda prompt: ctx.encode_prompt(prompt.upper()))


def test_prompt_stands_for_each_branchs_own_prompt(
    make_pipe: Callable[..., QwenImagePipeline], small: dict[str, Any]
) -> None:
    pipe = make_pipe(Echo(), Loud())
    fields = {**small, "negative_prompt": "blue", "echo": True}
    for plan in (pipe.plan("red", **fields), pipe.plan("red", **fields, loud=True)):
        for branch in plan.branches:
            echo, prompt = branch.text
            assert echo is prompt
            assert [s.name for s in branch.layout.text] == ["echo", "prompt"]
    plain, loud = pipe.plan("red", **fields).positive, pipe.plan("red", **fields, loud=True).positive
    assert not torch.equal(plain.text[0].value[0, -1], loud.text[0].value[0, -1])
