"""Plugins alone and in pairs: every one acts, order does not matter, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenimage_core import (
    Adapter,
    Condition,
    ConflictError,
    FieldsModel,
    HookError,
    QwenImagePipeline,
    RequestError,
    Residual,
    hookimpl,
)
from qwenimage_core.adapters.weights import LoraWeights, LowRank

from .example_plugins import Blinkers, Chorus, Memo, Nudge

PLUGINS = {"chorus": Chorus, "memo": Memo, "blinkers": Blinkers, "nudge": Nudge}
MakePipe = Callable[..., QwenImagePipeline]


@pytest.fixture(scope="module")
def fields() -> dict[str, dict[str, Any]]:
    ramp = np.linspace(0, 255, 32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
    return {
        "chorus": {"chorus": ["a square", "a very green sea"]},
        "memo": {"memo_image": Image.fromarray(ramp)},
        "blinkers": {"blinkers": 0.5},
        "nudge": {"nudge": 0.7},
    }


def latents(pipe: QwenImagePipeline, small: dict[str, Any], *given: dict[str, Any]) -> torch.Tensor:
    merged = {k: v for fields in given for k, v in fields.items()}
    return pipe("a red circle", **small, **merged, output_type="latent")


@pytest.mark.parametrize("name", PLUGINS)
def test_each_plugin_acts_and_leaves_nothing_behind(
    name: str, make_pipe: MakePipe, small: dict[str, Any], fields: dict[str, dict[str, Any]]
) -> None:
    bare, pipe = make_pipe(), make_pipe(PLUGINS[name]())
    before = latents(bare, small)
    assert torch.equal(latents(pipe, small), before), "installed is not active"
    assert not torch.allclose(latents(pipe, small, fields[name]), before, atol=1e-4)
    assert torch.equal(latents(pipe, small), before), "a run leaves nothing behind"


@pytest.mark.parametrize("pair", list(combinations(PLUGINS, 2)), ids="+".join)
def test_pairs_compose_in_any_order(
    pair: tuple[str, str], make_pipe: MakePipe, small: dict[str, Any], fields: dict[str, dict[str, Any]]
) -> None:
    first, second = pair
    one = make_pipe(PLUGINS[first](), PLUGINS[second]())
    other = make_pipe(PLUGINS[second](), PLUGINS[first]())
    both = latents(one, small, fields[first], fields[second])
    assert torch.equal(both, latents(other, small, fields[second], fields[first]))
    for alone in pair:
        assert not torch.allclose(both, latents(one, small, fields[alone]), atol=1e-5)


def test_all_four_at_once_are_planned_in_the_order_of_the_design(
    make_pipe: MakePipe, small: dict[str, Any], fields: dict[str, dict[str, Any]]
) -> None:
    pipe = make_pipe(*(plugin() for plugin in PLUGINS.values()))
    plan = pipe.plan("a red circle", **small, **{k: v for f in fields.values() for k, v in f.items()})
    assert [s.name for s in plan.positive.layout.segments] == [
        "voice/0",
        "voice/1",
        "prompt",
        "noise",
        "memo",
    ]
    assert plan.negative is not None
    assert [s.name for s in plan.negative.layout.segments] == ["prompt", "noise", "memo"]
    assert {(c.plugin, c.hook) for c in plan.contributions} >= {
        ("chorus", "condition"),
        ("memo", "latent_concat"),
        ("blinkers", "attention_mask"),
        ("nudge", "residual_inject"),
    }


def test_a_residual_of_scale_zero_is_the_same_as_none(make_pipe: MakePipe, small: dict[str, Any]) -> None:
    pipe = make_pipe(Nudge())
    assert torch.equal(latents(pipe, small, {"nudge": 0.0}), latents(pipe, small))


def test_a_batch_draws_what_single_calls_draw(
    make_pipe: MakePipe, small: dict[str, Any], fields: dict[str, dict[str, Any]]
) -> None:
    pipe = make_pipe(*(plugin() for plugin in PLUGINS.values()))
    request = {**small, **{k: v for f in fields.values() for k, v in f.items()}, "output_type": "latent"}
    batch = pipe(["a red circle", "two"], **request, num_images_per_prompt=2)
    seed = request.pop("seed")
    singles = [pipe(p, **request, seed=seed + i) for p in ("a red circle", "two") for i in range(2)]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


class Slow:
    """Replaces the schedule; a second one of it is a conflict."""

    def __init__(self, name: str) -> None:
        self.NAME = name

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return type("Fields", (FieldsModel,), {"__annotations__": {self.NAME: bool | None}, self.NAME: None})

    @hookimpl
    def condition(self) -> Condition:
        return Condition(
            schedule=lambda steps, tokens, strength, mu: [1 - i / steps for i in range(steps)] + [0.0]
        )


def test_two_replacements_are_an_error_that_names_both(make_pipe: MakePipe, small: dict[str, Any]) -> None:
    pipe = make_pipe(Slow("walk"), Slow("stroll"))
    assert pipe.plan("x", **small, walk=True).sigmas == pytest.approx([1, 2 / 3, 1 / 3, 0])
    with pytest.raises(ConflictError, match="stroll and walk both replace the schedule"):
        pipe("x", **small, walk=True, stroll=True)


class Broken(Nudge):
    NAME = "broken"

    @hookimpl
    def residual_inject(self) -> list[Residual]:
        def delta(block: int, step: int, tokens: torch.Tensor) -> torch.Tensor:
            return tokens / torch.zeros(3)

        return [Residual(name="crack", delta=delta, blocks=(1,))]


def test_a_failure_inside_the_loop_names_plugin_hook_block_step_and_shapes(
    make_pipe: MakePipe, small: dict[str, Any]
) -> None:
    with pytest.raises(HookError) as error:
        make_pipe(Broken())("x", **small, nudge=1.0)
    for part in ("broken", "residual_inject", "block 1", "step 0", "(1, 12, "):
        assert part in str(error.value)
    assert isinstance(error.value.__cause__, RuntimeError)


class Astray(Nudge):
    NAME = "astray"

    @hookimpl
    def residual_inject(self) -> list[Residual]:
        return [Residual(name="astray", delta=lambda block, step, tokens: tokens, blocks=(0, 99))]


def test_a_residual_for_blocks_that_are_not_there_is_refused_before_anything_runs(
    make_pipe: MakePipe, small: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="blocks that are not there"):
        make_pipe(Astray()).plan("x", **small, nudge=1.0)


def test_a_plugin_from_a_single_file(make_pipe: MakePipe, small: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "brighter.py"
    file.write_text(
        "from qwenimage_core import FieldsModel, Residual, hookimpl\n\n\n"
        "class Fields(FieldsModel):\n    brighter: float | None = None\n\n\n"
        "@hookimpl\ndef request_fields():\n    return Fields\n\n\n"
        "@hookimpl\ndef residual_inject(ctx):\n"
        "    return [Residual(name='brighter', delta=lambda block, step, tokens: ctx.request.brighter * tokens)]\n"
    )
    pipe = make_pipe(str(file))
    assert not torch.equal(latents(pipe, small, {"brighter": 0.1}), latents(pipe, small))


class Accent(Nudge):
    """An adapter for the text encoder, for one run."""

    NAME = "accent"

    @hookimpl
    def residual_inject(self) -> list[Residual]:
        return []

    @hookimpl
    def condition(self) -> Condition:
        draw = torch.Generator().manual_seed(0)
        down, up = torch.randn(4, 48, generator=draw), torch.randn(48, 4, generator=draw)
        weights = LoraWeights({"model.layers.0.self_attn.q_proj": LowRank(down, up)}, source="accent")
        return Condition(adapters=(Adapter(name="accent", weights=weights, component="text_encoder"),))


def test_an_adapter_of_the_text_encoder_acts_and_is_gone_after_the_run(
    make_pipe: MakePipe, small: dict[str, Any]
) -> None:
    pipe = make_pipe(Accent())
    before = latents(pipe, small)
    assert not torch.allclose(latents(pipe, small, {"nudge": 1.0}), before, atol=1e-5)
    assert torch.equal(latents(pipe, small), before)
