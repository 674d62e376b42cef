"""What ControlNets promise: they act in their window and only there, add up, and leave nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwenimage_blockwise_controlnet import ControlNetInput
from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet
from qwenimage_blockwise_controlnet.residual import active_steps, blackened, keep_mask
from qwenimage_core import (
    Condition,
    Context,
    FieldsModel,
    LoadError,
    QwenImagePipeline,
    RequestError,
    Target,
    hookimpl,
)

from .conftest import HEIGHT, WIDTH, mask, picture, random_controlnet

Fields = dict[str, Any]


def draw(pipe: QwenImagePipeline, small: Fields, *inputs: ControlNetInput, **fields: Any) -> torch.Tensor:
    given = {"blockwise_controlnet_inputs": list(inputs)} if inputs else {}
    return pipe(**{**small, **given, **fields})


EDGES = ControlNetInput(image=picture(1))
INPAINT = ControlNetInput(controlnet_id=1, image=picture(2), inpaint_mask=mask())
DEPTH = ControlNetInput(controlnet_id=2, image=picture(3), scale=0.5)


def test_each_acts_and_leaves_nothing_behind(pipe: QwenImagePipeline, small: Fields) -> None:
    before = draw(pipe, small)
    drawn = [draw(pipe, small, given) for given in (EDGES, INPAINT, DEPTH)]
    for number, latents in enumerate(drawn):
        for other in (before, *drawn[:number]):
            assert not torch.allclose(latents, other, atol=1e-3)
    assert torch.equal(draw(pipe, small), before)


def test_loaded_and_not_named_is_the_same_as_not_loaded(
    pipe: QwenImagePipeline, open_pipe: Callable[..., QwenImagePipeline], small: Fields
) -> None:
    assert torch.equal(draw(open_pipe(), small), draw(pipe, small))


def test_the_order_of_inputs_does_not_matter(pipe: QwenImagePipeline, small: Fields) -> None:
    one, other = draw(pipe, small, EDGES, INPAINT, DEPTH), draw(pipe, small, DEPTH, INPAINT, EDGES)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, draw(pipe, small, EDGES, INPAINT), atol=1e-3)


def test_scale_zero_is_the_same_as_absent(pipe: QwenImagePipeline, small: Fields) -> None:
    silent = EDGES.model_copy(update={"scale": 0.0})
    assert torch.equal(draw(pipe, small, silent), draw(pipe, small))
    assert torch.equal(draw(pipe, small, silent, DEPTH), draw(pipe, small, DEPTH))


def test_twice_half_is_once_whole(pipe: QwenImagePipeline, small: Fields) -> None:
    half = EDGES.model_copy(update={"scale": 0.5})
    torch.testing.assert_close(draw(pipe, small, half, half), draw(pipe, small, EDGES), rtol=1e-4, atol=1e-4)


def test_a_new_controlnet_adds_nothing_yet(
    open_pipe: Callable[..., QwenImagePipeline], small: Fields, tmp_path: Path
) -> None:
    path = save_controlnet(new_controlnet(blocks=2, width=64, seed=4), tmp_path / "new.safetensors")
    pipe = open_pipe(path)
    assert torch.equal(draw(pipe, small, EDGES), draw(pipe, small))
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_controlnet_learns_from_its_first_gradient() -> None:
    net = new_controlnet(blocks=1, width=8)
    out = net.controlnet_blocks[0](torch.randn(1, 3, 8), net.control(torch.randn(1, 3, 64)))
    out.sum().backward()
    assert net.controlnet_blocks[0].output_proj.weight.grad.abs().max() > 0


def test_a_batch_draws_what_single_calls_draw(pipe: QwenImagePipeline, small: Fields) -> None:
    together = draw(pipe, small, EDGES, INPAINT, num_images_per_prompt=2)
    for number, latents in enumerate(together):
        alone = draw(pipe, small, EDGES, INPAINT, seed=3 + number)
        torch.testing.assert_close(latents, alone, rtol=1e-4, atol=1e-4)


def test_both_branches_are_guided(pipe: QwenImagePipeline, small: Fields) -> None:
    plan = pipe.plan(**small, blockwise_controlnet_inputs=[EDGES])
    assert [[r.name for _, r in branch.residuals] for branch in plan.branches] == [
        ["controlnet 1 (id 0, scale 1)"]
    ] * 2


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "start", "end", "active"),
    [
        (5, 1.0, 0.0, (0, 1, 2, 3, 4)),
        (5, 1.0, 0.5, (0, 1, 2)),  # progress 1, 0.75, 0.5, 0.25, 0
        (5, 0.5, 0.0, (2, 3, 4)),
        (5, 0.75, 0.25, (1, 2, 3)),
        (5, 0.7, 0.6, ()),
        (4, 2 / 3, 1 / 3, (1, 2)),  # bounds that are no exact binary fractions
        (1, 1.0, 0.0, (0,)),
        (1, 1.0, 0.5, ()),  # a single step is at progress 0
    ],
)
def test_progress_falls_from_one_to_zero(
    steps: int, start: float, end: float, active: tuple[int, ...]
) -> None:
    assert active_steps(steps, start, end) == active


def test_a_window_limits_the_steps(pipe: QwenImagePipeline, small: Fields) -> None:
    """What has been drawn after each step differs from then on, and not before."""

    def steps(*inputs: ControlNetInput) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        draw(pipe, small, *inputs, step_callback=lambda report: seen.append(report.latents_BNC.clone()))
        return seen

    plain, late = steps(), steps(EDGES.model_copy(update={"start": 0.4}))
    assert [torch.equal(a, b) for a, b in zip(plain, late, strict=True)] == [True, True, False, False]


# --- the mask -----------------------------------------------------------------------------------------------------


def test_the_picture_is_black_under_the_mask() -> None:
    drawn = blackened(Image.new("RGB", (8, 4), (9, 8, 7)), Image.new("L", (2, 1)).resize((8, 4)))
    assert drawn.getcolors() == [(32, (9, 8, 7))]
    half = Image.new("L", (8, 4))
    half.paste(255, (0, 0, 4, 4))
    assert sorted(blackened(Image.new("RGB", (8, 4), (9, 8, 7)), half).getcolors()) == [
        (16, (0, 0, 0)),
        (16, (9, 8, 7)),
    ]


def test_the_mask_channel_is_one_where_the_picture_stays() -> None:
    half = Image.new("L", (8, 4))
    half.paste(255, (0, 0, 4, 4))
    assert keep_mask(half, 2, 4)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    grey = keep_mask(Image.new("L", (8, 4), 51), 1, 1)
    torch.testing.assert_close(grey.item(), 0.8, atol=1e-6, rtol=0)


def test_where_the_mask_lies_matters(pipe: QwenImagePipeline, small: Fields) -> None:
    whole = INPAINT.model_copy(update={"inpaint_mask": Image.new("L", (WIDTH, HEIGHT), 255)})
    assert not torch.allclose(draw(pipe, small, INPAINT), draw(pipe, small, whole), atol=1e-3)


def test_the_picture_under_the_mask_does_not_matter(pipe: QwenImagePipeline, small: Fields) -> None:
    painted = INPAINT.image.copy()
    painted.paste((200, 10, 10), (WIDTH // 4 + 4, HEIGHT // 4 + 4, WIDTH // 2, HEIGHT // 2))
    changed = INPAINT.model_copy(update={"image": painted})
    assert torch.equal(draw(pipe, small, INPAINT), draw(pipe, small, changed))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs image"),
        ({"image": picture(), "start": 0.2, "end": 0.6}, "begins after it ends"),
        ({"image": picture(), "start": 1.2}, "`start` .* less than or equal to 1"),
        ({"image": picture(), "controlnet_id": -1}, "`controlnet_id` .* greater than or equal to 0"),
        ({"image": picture(), "scale": float("nan")}, "`scale` .* finite"),
        ({"image": picture(), "inpaint_image": picture()}, "inpaint_image does nothing here"),
        ({"image": picture(), "processor_id": "cany"}, "no such annotator.*canny"),
        ({"image": "no.png"}, "there is no picture at no.png"),
        ({"image": picture(), "strength": 1}, "`strength` .* controlnet_id, scale"),
    ],
)
def test_an_input_that_cannot_act_is_refused_when_it_is_made(given: Fields, said: str) -> None:
    with pytest.raises(RequestError) as error:
        ControlNetInput(**given)
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": picture(), "controlnet_id": 3}, "not loaded.*controlnet_id=3.*0 to 2: 3 loaded"),
        ({"image": picture(size=(96, 128))}, "another size than the output.*96 x 128.*48 x 64"),
        ({"image": picture(size=(64, 64))}, "another aspect than the output.*64 x 64.*48 x 64"),
        ({"image": picture(), "controlnet_id": 1}, "lacks inpaint_mask.*68 input channels"),
        ({"image": picture(), "inpaint_mask": mask()}, "inpaint_mask, which cannot act.*64 input channels"),
        (
            {"image": picture(), "controlnet_id": 1, "inpaint_mask": mask((64, 64))},
            "inpaint_mask of input 1 .* another aspect",
        ),
        ({"image": Image.new("RGBA", (WIDTH, HEIGHT))}, "image of input 1 .* partly transparent"),
        ({"image": picture(), "start": 0.6, "end": 0.5}, "acts in none of the 4 steps.*1, 0.667, 0.333, 0"),
        ({"image": picture(), "start": 0.2, "end": 0.6}, "begins after it ends"),
    ],
)
def test_an_input_that_does_not_fit_the_run_is_refused(
    pipe: QwenImagePipeline, small: Fields, given: Fields, said: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipe(**small, blockwise_controlnet_inputs=[given])
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


def test_an_empty_list_is_refused(pipe: QwenImagePipeline, small: Fields) -> None:
    with pytest.raises(RequestError, match="empty list"):
        pipe(**small, blockwise_controlnet_inputs=[])


def test_none_loaded_is_said(open_pipe: Callable[..., QwenImagePipeline], small: Fields) -> None:
    with pytest.raises(RequestError, match="none is loaded"):
        draw(open_pipe(), small, EDGES)


@pytest.mark.parametrize("wrong", [{"blocks": 3}, {"width": 32}, {"channels": 132}])
def test_a_controlnet_for_another_base_is_refused(
    open_pipe: Callable[..., QwenImagePipeline], small: Fields, tmp_path: Path, wrong: dict[str, int]
) -> None:
    pipe = open_pipe(random_controlnet(tmp_path / "other.safetensors", 0, **wrong))
    with pytest.raises(RequestError, match="for another base model"):
        draw(pipe, small, EDGES)


def test_a_controlnet_that_lacks_a_tensor_is_refused(
    open_pipe: Callable[..., QwenImagePipeline], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = random_controlnet(tmp_path / "net.safetensors", 0)
    tensors = load_file(path)
    del tensors["controlnet_blocks.1.output_proj.bias"]
    save_file(tensors, path)
    with pytest.raises(LoadError, match=r"controlnet_blocks\.1\.output_proj\.bias"):
        open_pipe(path)


class Layers:
    """A target of several pictures at once."""

    NAME = "layers"

    class Fields(FieldsModel):
        layers: int | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def condition(self, ctx: Context) -> Condition:
        return Condition(target=Target(frames=ctx.request.layers))


def test_several_layers_at_once_are_refused(
    open_pipe: Callable[..., QwenImagePipeline], folder: Path, small: Fields
) -> None:
    pipe = open_pipe(folder.parent / "controlnet-0.safetensors", plugins=[Layers()])
    assert draw(pipe, small, EDGES, layers=1).isfinite().all()
    with pytest.raises(RequestError, match="guides one picture; layers draws several"):
        draw(pipe, small, EDGES, layers=2)
