"""The plan of several plugins in words: each one's share, who sees whom, and where residuals act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from qwenimage_core import QwenImagePipeline, Residual, hookimpl

from .example_plugins import Blinkers, Chorus, Memo, Nudge

MakePipe = Callable[..., QwenImagePipeline]


@pytest.fixture
def told(make_pipe: MakePipe, small: dict[str, Any]) -> list[str]:
    pipe = make_pipe(Chorus(), Memo(), Blinkers(), Nudge())
    fields = {
        "chorus": ["a square", "sea"],
        "memo_image": Image.new("RGB", (48, 32)),
        "blinkers": 0.5,
        "nudge": 0.7,
    }
    return str(pipe.explain("a red circle", **small, **fields)).splitlines()


def share(told: list[str], plugin: str) -> str:
    return next(line for line in told if line.startswith(f"  with {plugin} ")).split(": ")[1]


def test_each_plugin_has_a_line_that_says_what_it_does(told: list[str]) -> None:
    assert share(told, "chorus").startswith("adds text voice/0, voice/1")
    assert share(told, "memo") == "appends memo"
    assert "who sees whom" in share(told, "blinkers")
    assert share(told, "nudge").endswith("on noise"), "what every branch has alike is said once, of no branch"


def test_what_one_branch_has_alone_is_said_of_it(told: list[str]) -> None:
    negative = told[next(i for i, line in enumerate(told) if line.startswith("negative branch")) :]
    assert not any("voice/" in line for line in negative)
    assert "  attention: every token sees every token, no mask" not in told[: len(told) - len(negative)]


def test_memory_is_told_stage_by_stage(make_pipe: MakePipe, small: dict[str, Any]) -> None:
    explanation = make_pipe().explain("x", **small)
    lines = str(explanation).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("expected peak memory: "))
    assert [line.split()[0] for line in lines[at + 1 :]] == ["encode", "denoise", "decode"]
    assert "transformer" in lines[at + 2] and "work" in lines[at + 2]
    facts = explanation.as_dict()
    assert facts["expected_peak_bytes"] == max(stage["bytes"] for stage in facts["memory"]["stages"])


class Window(Nudge):
    """A residual in some blocks and steps."""

    def __init__(self, steps: tuple[int, ...], blocks: tuple[int, ...] | None = None) -> None:
        self.steps, self.blocks = steps, blocks

    @hookimpl
    def residual_inject(self) -> list[Residual]:
        return [Residual(name="push", delta=lambda *given: 0, steps=self.steps, blocks=self.blocks)]


@pytest.mark.parametrize(
    ("steps", "blocks", "said"),
    [
        ((0, 1, 2, 5), None, "every block, steps 1-3, 6 of 8"),
        (tuple(range(8)), (1,), "block 2 of 2, every step"),
        ((7,), (0, 1), "every block, step 8 of 8"),
    ],
)
def test_residuals_say_where_they_act(
    make_pipe: MakePipe, small: dict[str, Any], steps: Any, blocks: Any, said: str
) -> None:
    fields = small | {"num_inference_steps": 8, "nudge": 1.0}
    assert f"push of nudge on noise, {said}" in str(make_pipe(Window(steps, blocks)).explain("x", **fields))
