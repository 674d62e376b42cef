"""Fields that a plugin fills in where the caller left them open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from qwenimage_core import ConflictError, FieldsModel, QwenImagePipeline, hookimpl


class Hasty:
    """Wants few steps and no guidance."""

    def __init__(self, name: str = "hasty", steps: int = 2) -> None:
        self.NAME, self.steps = name, steps

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return type("Fields", (FieldsModel,), {"__annotations__": {self.NAME: bool | None}, self.NAME: None})

    @hookimpl
    def request_defaults(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"num_inference_steps": self.steps, "cfg_scale": 1.0} if given[self.NAME] else {}


def test_they_stand_between_the_model_s_defaults_and_what_is_given(
    make_pipe: Callable[..., QwenImagePipeline],
) -> None:
    pipe = make_pipe(Hasty())
    pipe.defaults = {"num_inference_steps": 9, "cfg_scale": 3.0, "height": 32}

    def values(**given: Any) -> tuple[int, float, int]:
        request = pipe.plan("x", width=32, **given).request
        return request.num_inference_steps, request.cfg_scale, request.height

    assert values() == (9, 3.0, 32)
    assert values(hasty=True) == (2, 1.0, 32)
    assert values(hasty=True, num_inference_steps=5) == (5, 1.0, 32)
    assert values(hasty=False) == (9, 3.0, 32)


def test_what_a_recipe_gives_makes_its_plugin_take_part(make_pipe: Callable[..., QwenImagePipeline]) -> None:
    pipe = make_pipe(Hasty())
    pipe.given = {"hasty": True}
    assert pipe.plan("x", width=32, height=32).steps == 2
    assert pipe.plan("x", width=32, height=32, hasty=False).steps == 30


def test_two_that_disagree_are_an_error_unless_the_caller_decides(
    make_pipe: Callable[..., QwenImagePipeline],
) -> None:
    pipe = make_pipe(Hasty(), Hasty("slower", 3))
    both = {"hasty": True, "slower": True, "width": 32, "height": 32}
    with pytest.raises(
        ConflictError, match="hasty and slower need different values of `num_inference_steps`"
    ):
        pipe.plan("x", **both)
    assert pipe.plan("x", **both, num_inference_steps=3).steps == 3
