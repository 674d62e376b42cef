"""Direct distillation against DiffSynth-Studio's own loss, on equal weights and start noise: loss and gradients of the
whole chain within 1e-5 in float32, from pictures and from a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenimage_core.values import TransformerOptions
from qwenimage_training.cache.frozen import freeze, thaw
from qwenimage_training.data.rows import Row
from qwenimage_training.encoded import VelocityModel, encode_sample
from qwenimage_training.objectives.distill import DirectDistillation
from qwenimage_training.sample import Planner, Sample

from .test_training import Both, disc, picture, their_inputs

pytest.importorskip("diffsynth")

STUDENT = {"seed": 7, "rand_device": "cpu", "num_inference_steps": 4, "cfg_scale": 1}
CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "eligen": {
        "eligen_entity_prompts": ["a red circle", "a blue square"],
        "eligen_entity_masks": [disc((4, 4, 44, 60)), disc((50, 20, 90, 60))],
    },
    "controlnet": {"blockwise_controlnet_image": picture(2)},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("distill") / "base", "base")


def our_loss(pair: Both, columns: dict[str, Any], *, cached: bool) -> float:
    objective = DirectDistillation()
    planner = Planner(pair.ours, [*columns, *STUDENT], objective.fixed, objective.check)
    row = Row(0, "a cat on a mat", {"image": picture(), **columns, **STUDENT})
    device = torch.device("cpu")

    def encoded(sample: Sample) -> Any:
        return encode_sample(sample, dtype=torch.float32, device=device)

    if cached:
        plans = []
        for zero in (False, True):
            pair.ours.options = TransformerOptions(zero_cond_t=zero)
            plans.append(planner.plan(row, "row"))
        pair.ours.options = TransformerOptions()
        sample, other = plans
        with torch.no_grad():
            frozen = freeze(encoded(sample), other.plan, planner.given(row))
        batch = [encoded(thaw(frozen, pair.ours, "row", 0, 0, None))]
    else:
        batch = [encoded(planner.plan(row, "row"))]
    transformer: Any = pair.ours.components["transformer"][0].module
    velocity = VelocityModel(transformer, checkpointing=True, offload=False)
    [loss] = objective.losses(velocity, batch, [torch.Generator()])
    loss.backward()
    found: float = loss.item()
    return found


def their_loss(pair: Both, columns: dict[str, Any]) -> float:
    from diffsynth.diffusion.loss import DirectDistillLoss

    shared: dict[str, Any] = {
        "use_gradient_checkpointing": False,
        "use_gradient_checkpointing_offload": False,
        "edit_image_auto_resize": True,
        "zero_cond_t": False,
        "input_image": picture(),
        "height": picture().height,
        "width": picture().width,
        **STUDENT,
        **their_inputs(columns),
    }
    state = shared, {"prompt": "a cat on a mat"}, {"negative_prompt": ""}
    with torch.no_grad():
        for unit in pair.theirs.units:
            state = pair.theirs.unit_runner(unit, pair.theirs, *state)
    shared, positive, _ = state
    loss = DirectDistillLoss(pair.theirs, **shared, **positive)
    loss.backward()
    found: float = loss.item()
    return found


@pytest.mark.parametrize("cached", [False, True], ids=["from pictures", "from a cache"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_diffsynth(case: str, cached: bool, both: Both) -> None:
    if cached and case == "controlnet":
        from qwenimage_training.cache.encoders import RecordingEncoders

        both.ours.encoders = RecordingEncoders
    ours = our_loss(both, CASES[case], cached=cached)
    theirs = their_loss(both, CASES[case])
    found, expected = both.gradients(0), both.gradients(1)
    assert abs(ours - theirs) <= 1e-5
    assert set(found) <= set(expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        # the peer computes the text half of the last block, which nobody reads: its gradients are zero
        difference = float((found.get(name, torch.zeros(())) - gradient).abs().max())
        assert difference <= min(1e-5, 1e-4 * largest), name


def test_the_comparison_would_notice_other_noise(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = our_loss(both, {}, cached=False)
    monkeypatch.setitem(STUDENT, "seed", 8)
    assert abs(ours - their_loss(both, {})) > 1e-4
