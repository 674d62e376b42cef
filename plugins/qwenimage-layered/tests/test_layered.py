"""What layers promise: where they and the input stand, what comes out, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_layered
from qwenimage_core import QwenImagePipeline, RequestError
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_layered.fields import MAX_LAYERS

from .conftest import Fields, MakePipe, picture

PROMPT = "a red circle on a blue background"


def latents(pipe: QwenImagePipeline, **fields: object) -> torch.Tensor:
    return pipe(**{"prompt": PROMPT, "output_type": "latent", **fields})


def test_every_layer_is_a_frame_and_the_input_is_frame_minus_one(
    pipe: QwenImagePipeline, small: Fields
) -> None:
    plan = pipe.plan(PROMPT, **small, layer_input_image=picture(48, 64), layer_num=3)
    for branch in plan.branches:
        layout = branch.layout
        assert [(s.name, s.tokens) for s in layout.images] == [("noise", 4 * 12), ("layered/input", 12)]
        positions = np.array(layout.positions())
        noise, given = (positions[layout.joint_slice(n)] for n in ("noise", "layered/input"))
        assert np.repeat([0, 1, 2, 3], 12).tolist() == noise[:, 0].tolist()
        assert given[:, 0].tolist() == [-1] * 12
        assert given[:, 1:].tolist() == noise[:12, 1:].tolist()
        text = positions[: layout.text_tokens]
        assert text[0].tolist() == [4, 4, 4], "after the five pictures, which are more than half a side"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_outcome_is_a_list_of_one_more_rgba_pictures(
    number: int, pipe: QwenImagePipeline, small: Fields
) -> None:
    images = pipe(PROMPT, **small, layer_input_image=picture(48, 64), layer_num=number)
    assert [(image.mode, image.size) for image in images] == [("RGBA", (48, 64))] * (number + 1)


def test_tensors_and_latents_keep_the_axis_of_layers(pipe: QwenImagePipeline, small: Fields) -> None:
    small |= {"layer_input_image": picture(48, 64), "layer_num": 0}
    assert latents(pipe, **small).shape == (1, 16, 8, 6)
    assert pipe(PROMPT, **small, output_type="tensor").shape == (1, 4, 64, 48)


def test_the_input_acts_with_its_alpha(pipe: QwenImagePipeline, small: Fields) -> None:
    given = picture(48, 64)
    opaque = given.copy()
    opaque.putalpha(255)
    found = latents(pipe, **small, layer_input_image=given, layer_num=1)
    for other in (opaque, picture(48, 64, seed=1)):
        assert not torch.allclose(
            found, latents(pipe, **small, layer_input_image=other, layer_num=1), atol=1e-3
        )


def test_layers_share_one_run(pipe: QwenImagePipeline, small: Fields) -> None:
    """They see each other: a layer of three is not the layer of two that the same noise would give."""
    small["layer_input_image"] = picture(48, 64)
    two, three = (latents(pipe, **small, layer_num=n) for n in (2, 3))
    assert not torch.allclose(two[1], three[1], atol=1e-3)


def test_installed_is_not_active_and_a_run_leaves_nothing_behind(
    pipe: QwenImagePipeline, make_pipe: MakePipe, small: Fields
) -> None:
    before = latents(make_pipe(), **small)
    assert torch.equal(latents(pipe, **small), before)
    latents(pipe, **small, layer_input_image=picture(48, 64), layer_num=1)
    assert torch.equal(latents(pipe, **small), before)


def test_a_batch_draws_what_single_calls_draw(pipe: QwenImagePipeline, small: Fields) -> None:
    seed = small.pop("seed")
    small |= {"layer_input_image": picture(48, 64), "layer_num": 1}
    batch = latents(pipe, **small, prompt=["a", "b"], seed=seed, num_images_per_prompt=2)
    singles = [latents(pipe, **small, prompt=p, seed=seed + i) for p in ("a", "b") for i in (0, 1)]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_explain_counts_layers(make_pipe: MakePipe, small: Fields) -> None:
    pipe = make_pipe(qwenimage_layered)
    text = str(pipe.explain(PROMPT, **small, layer_input_image=picture(48, 64), layer_num=3))
    assert "of 4 layers" in text and "layered/input" in text
    assert not any(component.loaded for several in pipe.components.values() for component in several)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layer_num": 2}, ["layer_num needs layer_input_image"]),
        ({"layer_input_image": picture(48, 64)}, ["layer_input_image needs layer_num"]),
        ({"layer_input_image": picture(48, 64), "layer_num": -1}, ["layer_num=-1", "1 to"]),
        (
            {"layer_input_image": picture(48, 64), "layer_num": MAX_LAYERS + 1},
            ["so many layers", str(MAX_LAYERS)],
        ),
        (
            {"layer_input_image": picture(48, 64, "RGB"), "layer_num": 2},
            ["no alpha", "RGB", 'convert("RGBA")'],
        ),
        ({"layer_input_image": picture(64, 64), "layer_num": 2}, ["size", "64 x 64", "48 x 64"]),
        ({"layer_input_image": "nowhere.png", "layer_num": 2}, ["there is no picture at nowhere.png"]),
        (
            {"layer_input_image": picture(48, 64), "layer_num": 0, "prompt": " "},
            ["layer_num=0", "prompt is empty"],
        ),
    ],
    ids=["no picture", "no number", "negative", "too many", "no alpha", "size", "absent", "nothing named"],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    fields: Fields, said: list[str], make_pipe: MakePipe, small: Fields
) -> None:
    pipe = make_pipe(qwenimage_layered)
    with pytest.raises(RequestError) as error:
        pipe(**{"prompt": PROMPT, **small, **fields})
    assert all(part in str(error.value) for part in said), str(error.value)
    assert not any(component.loaded for several in pipe.components.values() for component in several)


def test_a_model_without_layers_is_refused(make_pipe: MakePipe, small: Fields) -> None:
    with pytest.raises(RequestError, match="needs a transformer that knows layers"):
        make_pipe(qwenimage_layered, variant="base")(
            PROMPT, **small, layer_input_image=picture(48, 64), layer_num=2
        )


def test_a_vae_without_alpha_is_refused(tmp_path: Path, small: Fields) -> None:
    folder = write_tiny_checkpoint(tmp_path / "layered", variant="layered")
    other = write_tiny_checkpoint(tmp_path / "base")
    shutil.rmtree(folder / "vae")
    (other / "vae").rename(folder / "vae")
    pipe = QwenImagePipeline.from_pretrained(str(folder), plugins=[qwenimage_layered])
    with pytest.raises(
        RequestError, match=r"(?s)4 channels; the loaded VAE has 3.*Qwen-Image-Layered has its own"
    ):
        pipe(PROMPT, **small, layer_input_image=picture(48, 64), layer_num=2)


def test_a_start_picture_is_refused(pipe: QwenImagePipeline, small: Fields) -> None:
    start = {"input_image": picture(48, 64), "denoising_strength": 0.5}
    with pytest.raises(RequestError, match="3 layers at once"):
        pipe(PROMPT, **small, **start, layer_input_image=picture(48, 64), layer_num=2)


def test_full_alpha_is_alpha(pipe: QwenImagePipeline, small: Fields) -> None:
    opaque = Image.new("RGBA", (48, 64), "red")
    assert len(pipe(PROMPT, **small, layer_input_image=opaque, layer_num=1)) == 2


def test_without_the_plugin_the_field_names_its_package(make_pipe: MakePipe, small: Fields) -> None:
    with pytest.raises(RequestError, match=r"`layer_num` needs qwenimage-layered: pip install"):
        make_pipe()(PROMPT, **small, layer_num=2)
