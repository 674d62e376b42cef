"""What EliGen promises: who sees whom, what a run leaves behind, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_eligen
from qwenimage_core import (
    Context,
    FieldsModel,
    ImageSegment,
    Picture,
    QwenImagePipeline,
    RequestError,
    hookimpl,
)
from qwenimage_core.attention import visible_keys
from qwenimage_core.plan import Branch

from .conftest import rectangle

Fields = dict[str, Any]


class Reference:
    """A picture to look at, of any size."""

    NAME = "reference"

    class Fields(FieldsModel):
        reference_image: Picture | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def latent_concat(self, ctx: Context) -> Sequence[ImageSegment]:
        tokens = ctx.encode_picture(ctx.request.reference_image)
        return [ImageSegment(name="reference", tokens=tokens, rank=200)]


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def sees(branch: Branch) -> torch.Tensor:
    """(S, S): which token sees which, as the attention backend takes it."""
    view_S, views_VS = visible_keys([rule for _, rule in branch.rules], branch.layout)
    return views_VS[view_S]


def expected(branch: Branch, maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same, written out token by token: entity k belongs to maps[k], a map over the noise tokens."""
    owner = [s.name for s in branch.layout.segments for _ in range(s.tokens)]
    noise = owner.index("noise")
    seen = torch.ones(len(owner), len(owner), dtype=torch.bool)
    for i, a in enumerate(owner):
        for j, b in enumerate(owner):
            if a == b:
                continue
            if not a.startswith("entity") and not b.startswith("entity"):
                continue
            (entity, _), (other, place) = sorted(
                ((a, i), (b, j)), key=lambda pair: not pair[0].startswith("entity")
            )
            where = maps[int(entity.split()[1]) - 1].flatten()
            seen[i, j] = other == "noise" and bool(where[place - noise])
    return seen


def test_an_entity_sees_itself_and_its_area_and_nothing_else(
    pipe: QwenImagePipeline, request_fields: Fields
) -> None:
    plan = pipe.plan("a red circle", **request_fields)
    left, lower_right = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 6, dtype=torch.bool)
    left[:, :2] = True
    lower_right[2:, 2:] = True
    assert [s.name for s in plan.positive.layout.text] == ["entity 1", "entity 2", "prompt"]
    assert torch.equal(sees(plan.positive), expected(plan.positive, [left, lower_right]))


def test_every_text_starts_at_the_same_position(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    layout = pipe.plan("a red circle", **request_fields).positive.layout
    starts = {layout.positions()[layout.joint_slice(s.name).start] for s in layout.text}
    assert starts == {(3, 3, 3)}  # half the longer side of 4 x 6 tokens


def test_the_negative_branch_is_plain_unless_asked(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    plain = pipe.plan("a red circle", **request_fields).negative
    assert plain is not None
    assert [s.name for s in plain.layout.text] == ["prompt"]
    assert not plain.rules
    plan = pipe.plan("a red circle", **request_fields, negative_prompt="blue", eligen_enable_on_negative=True)
    assert plan.negative is not None
    assert [s.name for s in plan.negative.layout.text] == ["entity 1", "entity 2", "prompt"]
    assert len(set(map(id, plan.negative.text))) == 1, "copies of the negative prompt"
    assert len(plan.negative.rules) == len(plan.positive.rules)
    drawn = [
        pipe("a red circle", **request_fields, negative_prompt="blue", eligen_enable_on_negative=on)
        for on in (False, True)
    ]
    assert not torch.allclose(*drawn, atol=1e-4)


def test_masks_act(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    swapped = request_fields | {"eligen_entity_masks": request_fields["eligen_entity_masks"][::-1]}
    assert not torch.allclose(
        pipe("a red circle", **request_fields), pipe("a red circle", **swapped), atol=1e-4
    )


def test_the_order_of_entities_does_not_matter(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    turned = request_fields | {
        name: request_fields[name][::-1] for name in ("eligen_entity_prompts", "eligen_entity_masks")
    }
    torch.testing.assert_close(
        pipe("a red circle", **request_fields), pipe("a red circle", **turned), rtol=1e-4, atol=1e-4
    )


def test_attached_and_detached_exactly(
    make_pipe: Callable[..., QwenImagePipeline], pipe: QwenImagePipeline, request_fields: Fields
) -> None:
    plain = {name: value for name, value in request_fields.items() if not name.startswith("eligen")}
    before = make_pipe()("a red circle", **plain)
    assert torch.equal(pipe("a red circle", **plain), before)
    assert not torch.allclose(pipe("a red circle", **request_fields), before, atol=1e-4)
    assert torch.equal(pipe("a red circle", **plain), before)


def test_a_batch_draws_what_single_calls_draw(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    together = pipe("a red circle", **request_fields, num_images_per_prompt=3)
    for number, drawn in enumerate(together):
        alone = pipe("a red circle", **(request_fields | {"seed": 3 + number}))
        torch.testing.assert_close(drawn, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (48, 32), (192, 128), (32, 96), (80, 48)])
def test_the_area_holds_on_references_of_any_size(
    make_pipe: Callable[..., QwenImagePipeline], request_fields: Fields, width: int, height: int
) -> None:
    pipe = make_pipe(qwenimage_eligen, Reference())
    plan = pipe.plan("a red circle", **request_fields, reference_image=picture(width, height))
    seen, layout = sees(plan.positive), plan.positive.layout
    entity, noise, reference = (layout.joint_slice(name) for name in ("entity 1", "noise", "reference"))
    on_noise, on_reference = seen[entity.start, noise].view(4, 6), seen[entity.start, reference]
    on_reference = on_reference.view(height // 16, width // 16)
    for row in range(height // 16):
        for column in range(width // 16):
            # the token of the target under the middle of this token of the reference
            under = on_noise[int((row + 0.5) * 4 / (height // 16)), int((column + 0.5) * 6 / (width // 16))]
            assert on_reference[row, column] == under
    if (width, height) == (96, 64):
        assert torch.equal(on_reference, on_noise)
    assert torch.equal(seen, seen.T)
    assert torch.isfinite(
        pipe("a red circle", **request_fields, reference_image=picture(width, height))
    ).all()


def test_explain_names_entities_and_their_areas(pipe: QwenImagePipeline, request_fields: Fields) -> None:
    text = str(pipe.explain("a red circle", **request_fields))
    assert "entity 1 in 33% of noise" in text
    assert "3 pairs apart" in text


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eligen_entity_prompts": ["a square"]}, "1 eligen_entity_prompts and 2 eligen_entity_masks"),
        ({"eligen_entity_prompts": None}, "0 eligen_entity_prompts and 2 eligen_entity_masks"),
        ({"eligen_entity_masks": None}, "2 eligen_entity_prompts and 0 eligen_entity_masks"),
        ({"eligen_entity_prompts": [], "eligen_entity_masks": []}, "at least 1"),
        (
            {"eligen_entity_masks": [Image.new("RGB", (96, 64)), rectangle(0, 0, 9, 9)]},
            "Mask 1 .* covers nothing",
        ),
        # one white pixel that is not among those that are read
        (
            {"eligen_entity_masks": [rectangle(0, 0, 96, 64), rectangle(1, 1, 2, 2)]},
            "Mask 2 .* covers nothing",
        ),
        (
            {"eligen_entity_masks": [Image.new("RGBA", (96, 64)), rectangle(0, 0, 9, 9)]},
            "Mask 1 .* transparent",
        ),
        ({"eligen_entity_masks": [None, rectangle(0, 0, 9, 9)]}, "Mask 1 .* missing"),
        ({"eligen_entity_masks": ["no.png", rectangle(0, 0, 9, 9)]}, "there is no picture at no.png"),
        ({"eligen_enable_on_negative": True, "cfg_scale": 1.0}, "no negative branch"),
    ],
)
def test_bad_input_is_refused(
    pipe: QwenImagePipeline, request_fields: Fields, wrong: Fields, said: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipe("a red circle", **(request_fields | wrong))
    assert re.search(said, str(error.value)), str(error.value)


def test_a_choice_about_no_entities_is_refused(pipe: QwenImagePipeline) -> None:
    with pytest.raises(RequestError, match="does nothing without entities"):
        pipe("a red circle", eligen_enable_on_negative=True)


def test_a_file_that_is_no_picture_is_refused(
    pipe: QwenImagePipeline, request_fields: Fields, tmp_path: Path
) -> None:
    broken = tmp_path / "mask.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        pipe("x", **(request_fields | {"eligen_entity_masks": [broken, rectangle(0, 0, 9, 9)]}))
