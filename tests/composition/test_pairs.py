"""Every pair of plugins: both act, whatever their order; a batch draws what single runs draw; nothing stays behind.
Pairs that make no sense are refused, naming both."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from qwenimage_core import QwenImageError, QwenImagePipeline

from .. import plugin_cases
from ..plugin_cases import Cases
from .conftest import Base, Pipe
from .pairs import FIELDS, PAIRS, PLUGINS, PROMPT, SEVERAL, SMALL, Fields, Pair, Plugin

EVERY_PAIR = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


def draw(pipe: QwenImagePipeline, fields: Fields, **changed: object) -> torch.Tensor:
    return pipe(**{"prompt": PROMPT, **SMALL, "output_type": "latent", **fields, **changed})


def around(pair: Pair) -> Fields:
    """Without Lightning, too, the steps and guidance scale that it brings: what else it does must show."""
    return {"num_inference_steps": 4, "cfg_scale": 1.0} if "lightning" in pair.plugins else {}


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape != other.shape or not torch.allclose(one, other, atol=1e-4)


def test_the_table_holds_every_pair_once() -> None:
    assert [pair.plugins for pair in PAIRS] == list(combinations(PLUGINS, 2))
    assert list(SEVERAL) == list(FIELDS) == list(PLUGINS)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p.peer], ids=lambda pair: pair.name)
def test_the_live_comparison_of_a_pair_is_there(pair: Pair) -> None:
    """In a table of that file, or in one of tests/plugin_cases.py that the file runs."""
    assert pair.peer is not None
    file, case = pair.peer
    text = (Path(__file__).parents[1] / "parity" / file).read_text("utf-8")
    tables = {name: table for name, table in vars(plugin_cases).items() if isinstance(table, Cases)}
    shared = {case for name, table in tables.items() if f"{name}.given" in text for case in table.given}
    assert f'"{case}": ' in text or case in shared


@EVERY_PAIR
def test_both_act_in_any_order_and_nothing_stays_behind(
    pair: Pair, pipe: Pipe, pipe_in_reverse: Pipe, base: Base
) -> None:
    folder, run = base(pair.family), pipe(pair.family)
    before = draw(run, around(pair))
    both = draw(run, around(pair) | pair.fields(folder))
    assert both.isfinite().all()
    for alone in pair.plugins:
        assert differ(both, draw(run, around(pair) | pair.fields(folder, alone))), f"only {alone} acts"
    other_way = dict(reversed(pair.fields(folder).items()))
    assert torch.equal(both, draw(pipe_in_reverse(pair.family), other_way, **around(pair)))
    assert torch.equal(before, draw(run, around(pair)))


@EVERY_PAIR
def test_a_batch_draws_what_single_runs_draw(pair: Pair, pipe: Pipe, base: Base) -> None:
    fields, run = around(pair) | pair.fields(base(pair.family)), pipe(pair.family)
    prompts, seeds = [PROMPT, PROMPT + " and a square"], (3, 4)
    batch = draw(run, fields, prompt=prompts, num_images_per_prompt=2)
    singles = [draw(run, fields, prompt=prompt, seed=seed) for prompt in prompts for seed in seeds]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p.refusal], ids=lambda pair: pair.name)
def test_what_makes_no_sense_is_refused_naming_both(pair: Pair, pipe: Pipe, base: Base) -> None:
    assert pair.refusal is not None
    folder = base(pair.family)
    with pytest.raises(QwenImageError) as refused:
        pipe(pair.family).plan(
            PROMPT, **SMALL | around(pair) | pair.fields(folder) | pair.refusal.fields(folder)
        )
    said = str(refused.value)
    assert all(plugin in said.lower() for plugin in pair.plugins), said
    assert refused.value.mend


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if SEVERAL[p].each])
def test_two_of_a_kind_act_both(plugin: Plugin, pipe: Pipe, base: Base) -> None:
    several = SEVERAL[plugin]
    usual, run = FIELDS[plugin](base(several.family)), pipe(several.family)
    both = draw(run, usual | several.both)
    for one in several.each:
        assert differ(both, draw(run, usual | one))
    if several.swapped is not None:
        torch.testing.assert_close(draw(run, usual | several.swapped), both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if not SEVERAL[p].each])
def test_two_of_a_kind_are_refused_where_one_is_all(plugin: Plugin, pipe: Pipe, base: Base) -> None:
    several = SEVERAL[plugin]
    fields = FIELDS[plugin](base(several.family)) | several.both
    with pytest.raises(QwenImageError, match=next(iter(several.both))):
        pipe(several.family).plan(PROMPT, **SMALL, **fields)
