"""What holds for combinations that no peer can draw: areas on references of any size, branches of different layouts,
strength 0, and residuals that commute whatever else takes part."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenimage_core.values import Within

from .conftest import PLUGINS, Base, Pipe
from .models import open_pipe
from .pairs import EDGES, FIELDS, INPAINT, PROMPT, SMALL, Fields, Plugin, entities, picture

SIDES = st.integers(1, 8).map(lambda tokens: 16 * tokens)
LATENT: Fields = {**SMALL, "output_type": "latent"}


@settings(max_examples=25)
@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))
def test_an_entity_keeps_its_area_on_references_of_any_size(pipe: Pipe, sizes: list[tuple[int, int]]) -> None:
    """A token of a reference is the entity's if the token of the target under its middle is."""
    references = {
        "edit_image": [picture(n, size) for n, size in enumerate(sizes)],
        "edit_image_auto_resize": False,
    }
    plan = pipe("edit-2509").plan(PROMPT, **SMALL, **references, **entities("a square"))
    areas = {rule.image: rule.where for _, rule in plan.positive.rules if isinstance(rule, Within)}
    assert list(areas) == [segment.name for segment in plan.positive.layout.images]
    target_HW = areas["noise"]
    for number, (width, height) in enumerate(sizes, 1):
        area_HW = areas[f"edit/{number}"]
        assert tuple(area_HW.shape) == (height // 16, width // 16)
        for row in range(height // 16):
            for column in range(width // 16):
                y = (2 * row + 1) * target_HW.shape[0] // (2 * area_HW.shape[0])
                x = (2 * column + 1) * target_HW.shape[1] // (2 * area_HW.shape[1])
                assert area_HW[row, column] == target_HW[y, x]


def test_entities_of_the_positive_branch_do_not_reach_the_negative_one(pipe: Pipe, base: Base) -> None:
    """Guidance at scale s is n + s (p - n). So what one step draws at scales 1 and 2 tells what n alone draws: the
    references with the negative prompt, without entities."""
    run, references = pipe("edit-2509"), FIELDS["edit"](base("edit-2509"))
    one_step = {**LATENT, **references, "num_inference_steps": 1}
    with_entities = {**one_step, **entities("a square")}
    guidance = {"negative_prompt": "blurred", "cfg_scale": 2}
    positive, guided = run(PROMPT, **with_entities, cfg_scale=1), run(PROMPT, **with_entities, **guidance)
    alone = run("blurred", **one_step, cfg_scale=1)
    torch.testing.assert_close(2 * positive - guided, alone, rtol=1e-4, atol=1e-4)
    everywhere = run(PROMPT, **with_entities, **guidance, eligen_enable_on_negative=True)
    assert not torch.allclose(2 * positive - everywhere, alone, atol=1e-3)


@pytest.mark.parametrize("other", ["edit", "eligen", "in-context-control", "i2l"])
def test_what_has_strength_zero_is_absent_from_any_run(other: Plugin, pipe: Pipe, base: Base) -> None:
    folder, run = base("edit-2509"), pipe("edit-2509")
    fields = LATENT | FIELDS[other](folder)
    alone = run(PROMPT, **fields)
    assert torch.equal(run(PROMPT, **fields, blockwise_controlnet_inputs=[{**EDGES, "scale": 0}]), alone)
    still = FIELDS["i2l"](folder) | {"i2l_strength": 0}
    if other != "i2l":
        assert torch.equal(run(PROMPT, **fields, **still), alone)


@settings(max_examples=6)
@given(scales=st.tuples(*[st.floats(-2, 2)] * 3), end=st.sampled_from([0.0, 0.5, 1.0]))
def test_controlnets_commute_beside_everything_else(
    pipe: Pipe, base: Base, scales: tuple[float, float, float], end: float
) -> None:
    """In any order, with any scales and windows, beside references, context and entities."""
    folder, run = base("edit-2509"), pipe("edit-2509")
    beside = [FIELDS[name](folder) for name in ("edit", "in-context-control", "eligen")]
    fields = LATENT | {k: v for part in beside for k, v in part.items()}
    third = {"image": picture(9), "end": end}
    inputs = [{**i, "scale": s} for i, s in zip((EDGES, INPAINT, third), scales, strict=True)]
    first, *others = (
        run(PROMPT, **fields, blockwise_controlnet_inputs=list(order)) for order in permutations(inputs)
    )
    for drawn in others:
        torch.testing.assert_close(drawn, first, rtol=1e-4, atol=1e-4)


SIX: tuple[Plugin, ...] = (
    "edit",
    "eligen",
    "blockwise-controlnet",
    "in-context-control",
    "i2l",
    "lightning",
)


def test_six_plugins_take_part_in_one_run(pipe: Pipe, base: Base) -> None:
    """Six plugins of one model: each one's absence shows; one run leaves nothing behind."""
    folder, run = base("edit-2509"), pipe("edit-2509")
    fixed = LATENT | {"num_inference_steps": 4, "cfg_scale": 1.0}
    before = run(PROMPT, **fixed)
    together = run(PROMPT, **fixed, **{k: v for name in SIX for k, v in FIELDS[name](folder).items()})
    for absent in SIX:
        rest = {k: v for name in SIX if name != absent for k, v in FIELDS[name](folder).items()}
        assert not torch.allclose(run(PROMPT, **fixed, **rest), together, atol=1e-4), f"{absent} does not act"
    assert torch.equal(run(PROMPT, **fixed), before)


def test_plugins_work_alike_with_weights_that_come_from_disk(pipe: Pipe, base: Base) -> None:
    """All six, with no block of any component kept in memory, and every component gone after its stage."""
    folder = base("edit-2509")
    states, parts = ("offload", "onload"), ("dtype", "device")
    streamed = open_pipe(folder, PLUGINS, **{f"{state}_{part}": "disk" for state in states for part in parts})
    components = [c for several in streamed.components.values() for c in several]
    for component in components:
        component.budget = lambda component: 0
    request = {k: v for name in SIX for k, v in FIELDS[name](folder).items()}
    fixed = LATENT | {"num_inference_steps": 4, "cfg_scale": 1.0}
    assert torch.equal(streamed(PROMPT, **fixed, **request), pipe("edit-2509")(PROMPT, **fixed, **request))
    assert not any(component.loaded for component in components)
