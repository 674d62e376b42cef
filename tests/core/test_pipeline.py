"""The pipeline on a tiny random checkpoint: what comes back, what stays as it was, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenimage_core import DenoiseError, LoadError, ModelConfig, QwenImagePipeline, RequestError
from qwenimage_core.pipeline import Generation

Small = dict[str, Any]


def ramp(width: int = 48, height: int = 64) -> Image.Image:
    return Image.fromarray(np.linspace(0, 255, height * width * 3, dtype=np.uint8).reshape(height, width, 3))


def test_one_picture_of_the_size_asked_for(pipe: QwenImagePipeline, small: Small) -> None:
    image = pipe("a red circle", **small)
    assert (image.size, image.mode) == ((48, 64), "RGB")
    assert np.array_equal(np.array(image), np.array(pipe("a red circle", **small))), (
        "same request, same picture"
    )


def test_output_types_are_of_one_picture(pipe: QwenImagePipeline, small: Small) -> None:
    image = np.array(pipe("x", **small), dtype=np.int64)
    tensor = pipe("x", **small, output_type="tensor")
    latent = pipe("x", **small, output_type="latent")
    assert tensor.shape == (3, 64, 48) and tensor.dtype == torch.float32 and tensor.abs().max() <= 1
    assert latent.shape == (16, 8, 6)
    rounded = ((tensor.permute(1, 2, 0).double() + 1) * 127.5).round().numpy()
    assert np.abs(rounded - image).max() <= 1


def test_prompts_and_pictures_come_prompt_by_prompt_and_seed_by_seed(
    pipe: QwenImagePipeline, small: Small
) -> None:
    result = pipe.generate(["one", "another prompt"], **small, num_images_per_prompt=2)
    assert isinstance(result, Generation)
    assert result.seeds == [5, 6, 5, 6]
    assert result.prompts == ["one", "one", "another prompt", "another prompt"]
    alone = pipe("another prompt", **{**small, "seed": 6})
    difference = np.abs(np.array(result.images[3], dtype=int) - np.array(alone, dtype=int))
    assert difference.max() <= 1  # a batch may round the last bit otherwise


def test_a_seed_is_drawn_and_told_when_none_is_given(pipe: QwenImagePipeline, small: Small) -> None:
    small.pop("seed")
    first, second = pipe.generate("x", **small), pipe.generate("x", **small)
    assert first.seeds != second.seeds
    again = pipe("x", **small, seed=first.seeds[0])
    assert np.array_equal(np.array(again), np.array(first.images[0]))


def test_guidance_and_prompts_act(pipe: QwenImagePipeline, small: Small) -> None:
    base = pipe("a red circle", **small, output_type="latent")
    for change in (
        {"cfg_scale": 1},
        {"cfg_scale": 7},
        {"cfg_normalize": True},
        {"negative_prompt": "blurry"},
        {"exponential_shift_mu": 2.0},
        {"prompt": "a blue square"},
    ):
        other = pipe(**{"prompt": "a red circle", **small, **change}, output_type="latent")
        assert not torch.allclose(other, base, atol=1e-4), change


def test_image_to_image_stays_nearer_at_lower_strength(pipe: QwenImagePipeline, small: Small) -> None:
    start = pipe.plan("x", **small, input_image=ramp(), denoising_strength=0.5).start
    assert start is not None
    far = pipe("x", **small, input_image=ramp(), denoising_strength=0.9, output_type="latent")
    near = pipe("x", **small, input_image=ramp(), denoising_strength=0.05, output_type="latent")
    from qwenimage_core.latents import pack

    origin = start.value
    assert (pack(near[None, None]) - origin).norm() < (pack(far[None, None]) - origin).norm()


def test_inpainting_keeps_the_black_part(pipe: QwenImagePipeline, small: Small) -> None:
    mask = Image.new("L", (48, 64), 0)
    mask.paste(255, (0, 32, 48, 64))
    latent = pipe("x", **small, input_image=ramp(), inpaint_mask=mask, output_type="latent")
    kept = pipe.plan("x", **small, input_image=ramp(), inpaint_mask=mask).start
    assert kept is not None
    from qwenimage_core.latents import pack

    rows = pack(latent[None, None])[0].view(4, 3, -1)
    expected = kept.value[0].view(4, 3, -1)
    torch.testing.assert_close(rows[0], expected[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(rows[3], expected[3], atol=0.05)


def test_tiles_cover_the_picture(pipe: QwenImagePipeline, small: Small) -> None:
    whole = pipe("x", **small, output_type="tensor")
    tiled = pipe("x", **small, output_type="tensor", tiled=True, tile_size=128, tile_stride=64)
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)
    small_tiles = pipe("x", **small, output_type="tensor", tiled=True, tile_size=8, tile_stride=4)
    assert small_tiles.shape == whole.shape


def test_the_callback_sees_every_step_and_can_preview(pipe: QwenImagePipeline, small: Small) -> None:
    reports: list[Any] = []
    latent = pipe("x", **small, output_type="latent", step_callback=reports.append)
    assert [(r.step, r.steps) for r in reports] == [(0, 3), (1, 3), (2, 3)]
    assert [r.sigma for r in reports] == sorted((r.sigma for r in reports), reverse=True)
    from qwenimage_core.latents import pack

    torch.testing.assert_close(reports[-1].latents_BNC, pack(latent[None, None]))
    assert all(isinstance(p, Image.Image) and p.size == (48, 64) for p in reports[0].preview())


def test_an_interrupt_leaves_the_pipeline_as_it_was(pipe: QwenImagePipeline, small: Small) -> None:
    before = pipe("x", **small, output_type="latent")

    def stop(report: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("x", **small, step_callback=stop)
    assert torch.equal(pipe("x", **small, output_type="latent"), before)


def test_progress_wraps_the_steps(pipe: QwenImagePipeline, small: Small) -> None:
    seen: list[int] = []

    def progress(steps: Any) -> Any:
        for step in steps:
            seen.append(step)
            yield step

    pipe("x", **{**small, "progress_bar_cmd": progress})
    assert seen == [0, 1, 2]


def test_a_plan_loads_nothing(make_pipe: Callable[..., QwenImagePipeline], small: Small) -> None:
    pipe = make_pipe()
    text = str(pipe.explain("a red circle", **small))
    assert not any(c.loaded for several in pipe.components.values() for c in several)
    assert "48 x 64, 3 steps, guidance 4" in text
    assert "every token sees every token, no mask" in text
    assert json.loads(json.dumps(pipe.explain("a red circle", **small).as_dict()))["steps"] == 3


def test_values_that_are_not_finite_name_the_step(
    make_pipe: Callable[..., QwenImagePipeline], small: Small
) -> None:
    pipe = make_pipe()
    transformer = pipe.components["transformer"][0].module
    transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(DenoiseError, match="after step 1 of 3"):
        pipe("x", **small)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input_image": ramp(32, 32), "denoising_strength": 0.5}, "not of the target's size"),
        ({"hieght": 64}, "did you mean `height`"),
        ({"edit_image": ramp()}, 'pip install "qwenimage-core\\[edit\\]"'),
    ],
)
def test_requests_that_cannot_run_are_refused(
    pipe: QwenImagePipeline, small: Small, fields: Small, says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        pipe("x", **small, **fields)


def test_the_published_quick_start_on_a_checkpoint_in_hub_layout(checkpoint: Path, small: Small) -> None:
    """The call as published: one ModelConfig a component, by file pattern, under a base folder of models."""
    base = checkpoint.parent
    where = {"model_id": "Qwen/Qwen-Image", "local_model_path": str(base), "skip_download": True}
    (base / "Qwen").mkdir(exist_ok=True)
    shutil.copytree(checkpoint, base / "Qwen" / "Qwen-Image", dirs_exist_ok=True)
    pipe = QwenImagePipeline.from_pretrained(
        torch_dtype=torch.bfloat16,
        device="cpu",
        model_configs=[
            ModelConfig(**where, origin_file_pattern="transformer/diffusion_pytorch_model*.safetensors"),
            ModelConfig(**where, origin_file_pattern="text_encoder/model*.safetensors"),
            ModelConfig(**where, origin_file_pattern="vae/diffusion_pytorch_model.safetensors"),
        ],
        tokenizer_config=ModelConfig(**where, origin_file_pattern="tokenizer/"),
    )
    assert pipe("精致肖像，水下少女", **small).size == (48, 64)


def test_a_model_says_its_own_defaults(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "defaults.json").write_text(json.dumps({"height": 32, "width": 64, "num_inference_steps": 2}))
    pipe = QwenImagePipeline.from_pretrained(str(folder))
    assert pipe("x", seed=1).size == (64, 32)
    assert pipe.plan("x", width=32).grid.width == 2


def test_name_and_configs_exclude_each_other(checkpoint: Path) -> None:
    with pytest.raises(LoadError, match="from a model's name, or from ModelConfigs"):
        QwenImagePipeline.from_pretrained()
    with pytest.raises(LoadError, match="from a model's name, or from ModelConfigs"):
        QwenImagePipeline.from_pretrained(str(checkpoint), model_configs=[ModelConfig(path=checkpoint)])
