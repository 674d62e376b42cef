"""What editing promises: who sees the references and how, and what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import qwenimage_edit
from qwenimage_core import QwenImagePipeline
from qwenimage_core.layout import Layout

from .conftest import Fields, MakePipe, picture

PROMPT = "make the circle green"


def latents(pipe: QwenImagePipeline, **fields: object) -> torch.Tensor:
    return pipe(**{"prompt": PROMPT, "output_type": "latent", **fields})


def positions(layout: Layout, name: str) -> np.ndarray:
    """(tokens, 3): frame, row, column."""
    return np.array(layout.positions())[layout.joint_slice(name)]


def test_both_branches_hold_the_references_in_their_order(pipe: QwenImagePipeline, small: Fields) -> None:
    plan = pipe.plan(PROMPT, **small, edit_image=[picture(32, 48), picture(64, 16)])
    for branch in plan.branches:
        images = branch.layout.images
        assert [s.name for s in images] == ["noise", "edit/1", "edit/2"]
        assert [(s.grid.height, s.grid.width) for s in images if s.grid] == [(4, 3), (3, 2), (1, 4)]
        assert [int(positions(branch.layout, s.name)[0, 0]) for s in images] == [0, 1, 2]
        assert all(s.timestep == "step" for s in images)


def test_the_references_are_read_with_prompt_and_negative_prompt(
    pipe: QwenImagePipeline, small: Fields
) -> None:
    """One token of the encoder is 28 x 28 pixels: 64 x 80 pixels are two by three."""
    single = pipe.plan("a", negative_prompt="", **small, edit_image=picture(64, 80))
    words = 5 + 2  # the template's tail, and the marks around the picture
    assert single.negative is not None
    assert single.negative.layout.text_tokens == words + 2 * 3
    assert single.positive.layout.text_tokens == words + 2 * 3 + 1
    listed = pipe.plan("a", **small, edit_image=[picture(48, 32)])
    assert listed.positive.layout.text_tokens > 16 * 11, "one of a list is seen at 448 x 320"


@pytest.mark.parametrize("guided", [True, False])
def test_every_reference_acts_through_the_picture_and_the_prompt(
    guided: bool, pipe: QwenImagePipeline, small: Fields
) -> None:
    small |= {} if guided else {"cfg_scale": 1}
    one, other = picture(32, 32, seed=1), picture(32, 32, seed=2)
    both = latents(pipe, **small, edit_image=[one, other])
    assert not torch.allclose(both, latents(pipe, **small, edit_image=[other, one]), atol=1e-3)
    assert not torch.allclose(both, latents(pipe, **small, edit_image=[one, one]), atol=1e-3)


def test_a_list_of_one_is_another_template_than_the_picture_itself(
    pipe: QwenImagePipeline, small: Fields
) -> None:
    reference = picture(32, 32)
    found = latents(pipe, **small, edit_image=[reference])
    assert not torch.allclose(found, latents(pipe, **small, edit_image=reference), atol=1e-3)


def test_a_path_is_as_good_as_a_picture(pipe: QwenImagePipeline, small: Fields, tmp_path: Path) -> None:
    reference = picture(32, 32)
    reference.save(tmp_path / "reference.png")
    found = latents(pipe, **small, edit_image=[str(tmp_path / "reference.png")])
    assert torch.equal(found, latents(pipe, **small, edit_image=[reference]))


def test_installed_is_not_active_and_a_run_leaves_nothing_behind(
    pipe: QwenImagePipeline, make_pipe: MakePipe, small: Fields, bare: Fields
) -> None:
    before = latents(make_pipe(), **bare)
    assert torch.equal(latents(pipe, **bare), before)
    latents(pipe, **small, edit_image=picture(32, 32))
    assert torch.equal(latents(pipe, **bare), before)


def test_a_batch_draws_what_single_calls_draw(pipe: QwenImagePipeline, small: Fields) -> None:
    seed = small.pop("seed")
    fields = {**small, "edit_image": [picture(32, 48), picture(48, 32)]}
    batch = latents(pipe, **fields, prompt=[PROMPT, "two"], seed=seed, num_images_per_prompt=2)  # type: ignore[misc]
    singles = [
        latents(pipe, **{**fields, "prompt": p, "seed": seed + i}) for p in (PROMPT, "two") for i in (0, 1)
    ]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


# --- time zero ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "given", "rule"),
    [
        ("edit-2509", None, "step"),
        ("edit-2509", True, "zero"),
        ("edit-2511", None, "zero"),
        ("edit-2511", False, "step"),
    ],
)
def test_references_are_at_time_zero_as_the_checkpoint_or_the_request_says(
    variant: str, given: bool | None, rule: str, make_pipe: MakePipe, small: Fields
) -> None:
    pipe = make_pipe(qwenimage_edit, variant=variant)
    plan = pipe.plan(PROMPT, **small, edit_image=[picture(32, 32)], zero_cond_t=given)
    assert [s.timestep for s in plan.positive.layout.images] == ["step", rule]


def test_the_checkpoints_rule_given_by_hand_is_the_same_picture(make_pipe: MakePipe, small: Fields) -> None:
    pipe = make_pipe(qwenimage_edit, variant="edit-2511")
    small["edit_image"] = [picture(32, 32)]
    found = latents(pipe, **small)
    assert torch.equal(found, latents(pipe, **small, zero_cond_t=True))
    assert not torch.allclose(found, latents(pipe, **small, zero_cond_t=False), atol=1e-3)


# --- positions of pictures of low resolution ------------------------------------------------------------------------


def test_interpolation_spreads_a_small_reference_over_the_drawn_picture(
    pipe: QwenImagePipeline, bare: Fields
) -> None:
    """The published numbers: 8 x 6 tokens are drawn, 4 x 3 are given."""
    bare |= {"height": 128, "width": 96, "edit_image": picture(48, 64), "edit_image_auto_resize": False}
    own = positions(pipe.plan(PROMPT, **bare).positive.layout, "edit/1")
    spread = positions(pipe.plan(PROMPT, **bare, edit_rope_interpolation=True).positive.layout, "edit/1")
    assert np.unique(own[:, 1]).tolist() == [-2, -1, 0, 1]
    assert np.unique(spread[:, 1]).tolist() == [-4, -2, 0, 3]
    assert np.unique(spread[:, 2]).tolist() == [-3, -1, 2]
    assert spread[:, 0].tolist() == own[:, 0].tolist() == [1] * 12


def test_interpolation_changes_the_picture_where_the_grids_differ_only(
    pipe: QwenImagePipeline, small: Fields
) -> None:
    for size, same in (((48, 64), True), ((32, 32), False)):
        fields = {**small, "edit_image": picture(*size)}
        plain, spread = (latents(pipe, **fields, edit_rope_interpolation=flag) for flag in (False, True))
        assert torch.equal(plain, spread) is same


def test_runs_with_interpolation_do_not_change_later_ones(pipe: QwenImagePipeline, small: Fields) -> None:
    """DiffSynth-Studio keeps interpolated positions for the same grid; here nothing depends on earlier calls."""
    small["edit_image"] = picture(32, 32)
    before = latents(pipe, **small)
    latents(pipe, **small, edit_rope_interpolation=True)
    assert torch.equal(latents(pipe, **small), before)


# --- work that is not done twice ------------------------------------------------------------------------------------


def test_a_reference_is_resized_and_encoded_once_for_all_prompts(
    make_pipe: MakePipe, small: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_pipe(qwenimage_edit)
    vae = pipe.components["vae"][0].module
    calls: list[int] = []
    encode: Callable[..., torch.Tensor] = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: calls.append(1) or encode(pixels))
    pipe(["a", "b", "c"], **small, edit_image=[picture(32, 32), picture(48, 32)], num_images_per_prompt=2)
    assert len(calls) == 2


def test_a_plan_computes_nothing(make_pipe: MakePipe, small: Fields) -> None:
    pipe = make_pipe(qwenimage_edit)
    text = str(pipe.explain(PROMPT, **small, edit_image=[picture(32, 32)]))
    assert "edit/1" in text and "with edit " in text
    assert not any(component.loaded for several in pipe.components.values() for component in several)
