"""LoRA, schedule, guidance scale and step count as one object; what does not belong together is refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import LoadError, ModelConfig, QwenImagePipeline, RequestError, TransformerOptions
from qwenimage_core.errors import QwenImageWarning
from qwenimage_lightning.recognise import LightningFile, family_in, steps_in

from .conftest import lightning_lora

Fields = dict[str, Any]

# Published names, with what they are for.
PUBLISHED = {
    "Qwen-Image-Lightning-4steps-V1.0.safetensors": (4, "Qwen-Image"),
    "Qwen-Image-Lightning-8steps-V1.1-bf16.safetensors": (8, "Qwen-Image"),
    "Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors": (4, "Qwen-Image"),
    "Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors": (8, "Qwen-Image-Edit"),
    "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-fp32.safetensors": (4, "Qwen-Image-Edit-2509"),
    "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors": (4, "Qwen-Image-Edit-2511"),
    "Qwen-Image-2512-Lightning-4steps-V1.0-fp32.safetensors": (4, "Qwen-Image-2512"),
    "Qwen-Image-fp8-e4m3fn-Lightning-4steps-V1.0-fp32.safetensors": (4, "Qwen-Image"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_tell_steps_and_base(name: str, tmp_path: Path) -> None:
    file = LightningFile(lightning_lora(tmp_path / name))
    assert (file.steps, file.family) == PUBLISHED[name]
    assert file.for_fp8_base == ("fp8-e4m3fn-Lightning" in name)
    assert (file.blocks, file.width) == (2, 64)


def test_a_renamed_file_is_known_by_its_metadata(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "Qwen-Image-Edit-2511-Lightning-8steps"}
    file = LightningFile(lightning_lora(tmp_path / "fast.safetensors", metadata=metadata))
    assert (file.steps, file.family) == (8, "Qwen-Image-Edit-2511")


def test_names_without_a_number_of_steps_tell_nothing() -> None:
    assert steps_in(["lightning.safetensors", "V2.0", "upstairs4"]) is None
    assert family_in(["lightning.safetensors"]) is None
    assert steps_in(["a 12-step file"]) == 12


def test_it_brings_schedule_steps_and_guidance_scale(
    pipe: QwenImagePipeline, small: Fields, four_steps: Path
) -> None:
    plan = pipe.plan(**small, lightning=four_steps)
    assert plan.sigmas == pytest.approx((1, 0.9, 0.75, 0.5, 0))
    assert plan.negative is None
    assert [adapter.weights for adapter in plan.adapters] == [four_steps]
    eight = lightning_lora(four_steps.with_name("Qwen-Image-Lightning-8steps-V2.0.safetensors"))
    expected = (1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3, 0)
    assert pipe.plan(**small, lightning=eight).sigmas == pytest.approx(expected, abs=1e-6)


def test_the_model_s_own_defaults_give_way(pipe: QwenImagePipeline, small: Fields, four_steps: Path) -> None:
    pipe.defaults = {"cfg_scale": 3.0, "num_inference_steps": 20}
    try:
        plan = pipe.plan(**small, lightning=four_steps)
        assert (plan.request.cfg_scale, plan.steps) == (1, 4)
        assert pipe.plan(**small).steps == 20
    finally:
        pipe.defaults = {}


def test_true_is_the_schedule_alone(pipe: QwenImagePipeline, small: Fields) -> None:
    plan = pipe.plan(**small, lightning=True, num_inference_steps=8)
    assert plan.sigmas[:3] == pytest.approx((1, 0.954545, 0.9), abs=1e-6)
    assert plan.adapters == ()
    assert pipe.plan(**small, lightning=True).steps == 4


def test_it_acts_and_leaves_nothing_behind(pipe: QwenImagePipeline, small: Fields, four_steps: Path) -> None:
    plain = small | {"cfg_scale": 1.0, "num_inference_steps": 4}
    weights = {
        n: t.clone() for n, t in pipe.components["transformer"][0].load(whole=True).state_dict().items()
    }
    before = pipe(**plain)
    schedule, fast = pipe(**small, lightning=True), pipe(**small, lightning=four_steps)
    for one, other in ((before, schedule), (before, fast), (schedule, fast)):
        assert not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(pipe(**plain), before)
    after = pipe.components["transformer"][0].load(whole=True).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_it_is_the_lora_with_the_schedule(pipe: QwenImagePipeline, small: Fields, four_steps: Path) -> None:
    fast = pipe(**small, lightning=four_steps)
    pipe.load_lora(four_steps, name="by hand")
    try:
        assert torch.equal(pipe(**small, lightning=True), fast)
    finally:
        pipe.clear_lora()


def test_a_batch_draws_what_single_calls_draw(
    pipe: QwenImagePipeline, small: Fields, four_steps: Path
) -> None:
    together = pipe(**small, lightning=four_steps, num_images_per_prompt=2)
    for number, latents in enumerate(together):
        alone = pipe(**(small | {"seed": 3 + number}), lightning=four_steps)
        torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [str, Path, lambda p: ModelConfig(path=p), lambda p: {"path": str(p)}])
def test_a_file_can_be_given_in_any_way(
    pipe: QwenImagePipeline, small: Fields, four_steps: Path, form: Callable[[Path], Any]
) -> None:
    request = pipe.plan(**small, lightning=form(four_steps)).request
    assert request.lightning == ModelConfig(path=four_steps)
    recorded = request.model_dump(mode="json", include={"lightning"})["lightning"]
    assert pipe.plan(**small, lightning=recorded).request.lightning == request.lightning


def test_false_is_as_if_it_were_not_given(pipe: QwenImagePipeline, small: Fields) -> None:
    assert pipe.plan(**small, lightning=False).sigmas == pipe.plan(**small).sigmas


def test_edit_2511_takes_its_own_file(
    open_pipe: Callable[..., QwenImagePipeline], small: Fields, tmp_path: Path
) -> None:
    file = lightning_lora(tmp_path / "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors")
    assert open_pipe("edit-2511").plan(**small, lightning=file).steps == 4


def test_a_recipe_that_says_time_zero_takes_the_file_of_edit_2511(
    pipe: QwenImagePipeline, small: Fields, tmp_path: Path
) -> None:
    """A checkpoint without its config.json does not say it."""
    file = lightning_lora(tmp_path / "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors")
    pipe.options = TransformerOptions(zero_cond_t=True)
    try:
        assert pipe.plan(**small, lightning=file).steps == 4
    finally:
        pipe.options = TransformerOptions()


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cfg_scale": 4.0}, "without guidance.*cfg_scale=4.*cfg_scale=1"),
        ({"cfg_scale": 0.5}, "without guidance"),
        ({"num_inference_steps": 8}, "is for 4 steps.*num_inference_steps=8"),
        ({"num_inference_steps": 30}, "is for 4 steps"),
        ({"exponential_shift_mu": 0.7}, "fixed shift of 3"),
        ({"negative_prompt": "blurred"}, "negative_prompt does nothing"),
    ],
)
def test_a_request_that_does_not_suit_is_refused(
    pipe: QwenImagePipeline, small: Fields, four_steps: Path, fields: Fields, said: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipe(**small, lightning=four_steps, **fields)
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


def test_guidance_is_refused_with_the_schedule_alone(pipe: QwenImagePipeline, small: Fields) -> None:
    with pytest.raises(RequestError, match="without guidance"):
        pipe(**small, lightning=True, cfg_scale=4.0)


def test_a_file_that_tells_no_steps_runs_in_a_published_number(
    pipe: QwenImagePipeline, small: Fields, tmp_path: Path
) -> None:
    file = lightning_lora(tmp_path / "fast.safetensors")
    assert pipe.plan(**small, lightning=file, num_inference_steps=8).steps == 8
    with pytest.raises(RequestError, match="4 or 8 steps"):
        pipe.plan(**small, lightning=file, num_inference_steps=6)


@pytest.mark.parametrize(
    ("variant", "name", "said"),
    [
        (
            "base",
            "Qwen-Image-Edit-2511-Lightning-4steps",
            "is for Qwen-Image-Edit-2511; loaded is another model",
        ),
        ("edit-2511", "Qwen-Image-Lightning-4steps", "is for Qwen-Image; loaded is Qwen-Image-Edit-2511"),
        ("edit-2511", "Qwen-Image-Edit-2509-Lightning-8steps", "is for Qwen-Image-Edit-2509; loaded is"),
        ("layered", "Qwen-Image-Lightning-4steps", "loaded is Qwen-Image-Layered"),
        ("base", "Qwen-Image-fp8-e4m3fn-Lightning-4steps", "distilled on a base in float8"),
    ],
)
def test_a_file_for_another_base_is_refused(
    open_pipe: Callable[..., QwenImagePipeline],
    small: Fields,
    tmp_path: Path,
    variant: str,
    name: str,
    said: str,
) -> None:
    with pytest.raises(RequestError, match=said):
        open_pipe(variant).plan(**small, lightning=lightning_lora(tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize("size", [{"blocks": 3}, {"width": 128}])
def test_a_file_for_another_transformer_is_refused(
    pipe: QwenImagePipeline, small: Fields, tmp_path: Path, size: dict[str, int]
) -> None:
    file = lightning_lora(tmp_path / "Qwen-Image-Lightning-4steps.safetensors", **size)
    with pytest.raises(RequestError, match="made for another transformer"):
        pipe.plan(**small, lightning=file)


def test_a_base_cast_to_float8_warns_of_a_file_for_16_bits(
    open_pipe: Callable[..., QwenImagePipeline], small: Fields, four_steps: Path
) -> None:
    pipe = open_pipe("edit")
    file = pipe.components["transformer"][0].checkpoint.files[0]
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in load_file(file).items()}
    save_file(tensors, file)
    with pytest.warns(QwenImageWarning, match=r"kept in float8_e4m3fn.*bfloat16 or scaled fp8") as told:
        open_pipe("edit").plan(**small, lightning=four_steps)
    assert str(file) in str(told[0].message) and four_steps.name in str(told[0].message)
    fp8 = lightning_lora(four_steps.with_name("Qwen-Image-fp8-e4m3fn-Lightning-4steps-V1.0-fp32.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", QwenImageWarning)
        assert open_pipe("edit").plan(**small, lightning=fp8).steps == 4


def test_scaled_float8_is_no_reason_to_warn(
    open_pipe: Callable[..., QwenImagePipeline], small: Fields, four_steps: Path
) -> None:
    file = open_pipe("edit").components["transformer"][0].checkpoint.files[0]
    tensors = {}
    for name, tensor in load_file(file).items():
        tensors[name] = tensor.float()
        if tensor.ndim == 2:
            scale = tensors[name].abs().max() / 448
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "weight_scale"] = scale
    save_file(tensors, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QwenImageWarning)
        assert open_pipe("edit").plan(**small, lightning=four_steps).steps == 4


def test_weights_that_are_no_lora_are_refused(pipe: QwenImagePipeline, small: Fields, tmp_path: Path) -> None:
    file = tmp_path / "qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning.safetensors"
    save_file({"transformer_blocks.0.attn.to_q.weight": torch.zeros(64, 64)}, file)
    with pytest.raises(RequestError, match="is no LoRA"):
        pipe.plan(**small, lightning=file)


def test_what_is_no_file_is_refused(pipe: QwenImagePipeline, small: Fields, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        pipe.plan(**small, lightning=tmp_path / "no.safetensors")
    with pytest.raises(RequestError, match="not int"):
        pipe.plan(**small, lightning=4)
    for number in range(2):
        lightning_lora(tmp_path / "two" / f"{number}.safetensors")
    with pytest.raises(RequestError, match="not one file"):
        pipe.plan(**small, lightning=tmp_path / "two")
