"""What in-context control promises: where the control picture stands, what it does, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_in_context_control as plugin
from qwenimage_core import QwenImagePipeline, QwenImageWarning, RequestError

from .conftest import Fields, MakePipe, picture

PROMPT = "Context_Control. a red circle"


def latents(pipe: QwenImagePipeline, **fields: object) -> torch.Tensor:
    return pipe(**{"prompt": PROMPT, "output_type": "latent", **fields})


def test_the_control_stands_after_the_noise_on_an_equal_grid_and_frame_one(
    pipe: QwenImagePipeline, small: Fields
) -> None:
    plan = pipe.plan(PROMPT, **small, context_image=picture(48, 64))
    for branch in plan.branches:
        layout = branch.layout
        assert [s.name for s in layout.images] == ["noise", "context"]
        noise, context = (np.array(layout.positions())[layout.joint_slice(n)] for n in ("noise", "context"))
        assert (context - noise).tolist() == [[1, 0, 0]] * 12
        assert layout["context"].timestep == "step"


def test_a_control_of_another_size_is_brought_to_the_targets(pipe: QwenImagePipeline, small: Fields) -> None:
    large = picture(96, 128)
    resized = large.resize((48, 64), Image.Resampling.BICUBIC)
    assert torch.equal(
        latents(pipe, **small, context_image=large), latents(pipe, **small, context_image=resized)
    )


def test_the_control_acts_and_leaves_nothing_behind(
    pipe: QwenImagePipeline, make_pipe: MakePipe, small: Fields
) -> None:
    before = latents(make_pipe(), **small)
    assert torch.equal(latents(pipe, **small), before), "installed is not active"
    one = latents(pipe, **small, context_image=picture(48, 64))
    other = latents(pipe, **small, context_image=picture(48, 64, seed=1))
    assert not torch.allclose(one, before, atol=1e-3)
    assert not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(latents(pipe, **small), before)


def test_a_batch_draws_what_single_calls_draw(pipe: QwenImagePipeline, small: Fields) -> None:
    seed = small.pop("seed")
    small["context_image"] = picture(48, 64)
    prompts = [PROMPT, PROMPT + " and a square"]
    batch = latents(pipe, **small, prompt=prompts, seed=seed, num_images_per_prompt=2)
    singles = [latents(pipe, **small, prompt=p, seed=seed + i) for p in prompts for i in (0, 1)]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_control_is_encoded_once_for_all_prompts(
    make_pipe: MakePipe, small: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_pipe(plugin)
    vae = pipe.components["vae"][0].module
    calls: list[int] = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: calls.append(1) or encode(pixels))
    latents(pipe, **small, prompt=[PROMPT, PROMPT + "s"], context_image=picture(96, 128))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (picture(64, 64), ["another aspect", "64 x 64", "48 x 64"]),
        (Image.new("RGBA", (48, 64), (1, 2, 3, 4)), ["partly transparent", "RGBA", 'convert("RGB")']),
        ("nowhere.png", ["context_image", "there is no picture at nowhere.png"]),
        (3, ["context_image", "not int"]),
    ],
    ids=["aspect", "alpha", "absent", "number"],
)
def test_bad_controls_are_refused_before_anything_is_loaded(
    control: object, said: list[str], make_pipe: MakePipe, small: Fields
) -> None:
    pipe = make_pipe(plugin)
    with pytest.raises(RequestError) as error:
        pipe(PROMPT, **small, context_image=control)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert not any(component.loaded for several in pipe.components.values() for component in several)


def test_an_unreadable_file_is_named(pipe: QwenImagePipeline, small: Fields, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(RequestError, match=r"broken\.png cannot be read"):
        pipe(PROMPT, **small, context_image=tmp_path / "broken.png")


def test_an_aspect_off_by_rounding_to_tokens_is_taken(pipe: QwenImagePipeline, small: Fields) -> None:
    assert pipe.plan(PROMPT, **small, context_image=picture(500, 600)).images[0].count == 12


def test_a_prompt_without_the_trained_words_is_warned_of(
    pipe: QwenImagePipeline, small: Fields, recwarn: pytest.WarningsRecorder
) -> None:
    pipe.plan(PROMPT, **small, context_image=picture(48, 64))
    assert not [w for w in recwarn if issubclass(w.category, QwenImageWarning)]
    with pytest.warns(QwenImageWarning, match="does not begin with 'Context_Control"):
        pipe.plan("a red circle", **small, context_image=picture(48, 64))


def test_transparency_is_for_models_that_have_it(make_pipe: MakePipe, small: Fields) -> None:
    """The brush mask of Layered-Control-V2, whose VAE has alpha; its prompts carry no trained words."""
    pipe = make_pipe(plugin, variant="layered")
    small |= {"prompt": "text"}
    brush = picture(48, 64, "RGBA")
    found, opaque = (latents(pipe, **small, context_image=mask) for mask in (brush, brush.convert("RGB")))
    assert not torch.allclose(found, opaque, atol=1e-3)


def test_without_the_plugin_the_field_names_its_package(make_pipe: MakePipe, small: Fields) -> None:
    with pytest.raises(
        RequestError, match=r"`context_image` needs qwenimage-in-context-control: pip install"
    ):
        make_pipe()(PROMPT, **small, context_image=picture(48, 64))
