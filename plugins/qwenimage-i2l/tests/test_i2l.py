"""A run with pictures: what the adapter is, that it is exactly a LoRA file, and that nothing stays of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import qwenimage_i2l
from qwenimage_core import QwenImagePipeline
from qwenimage_core.adapters.convert import save_lora
from qwenimage_core.adapters.files import load_lora

from .conftest import LAYERS, bias_weights, picture

PICTURES = [picture(0), picture(1, (30, 50))]


def lora_of(pipe: QwenImagePipeline, **fields: Any) -> Any:
    """The weights of a request's adapter."""
    (adapter,) = pipe.plan("x", cfg_scale=1, **fields).adapters
    return adapter.read(pipe.components["transformer"][0].module)


def change(weights: Any, layer: str) -> torch.Tensor:
    return weights.modules[layer].delta_OI()


def test_a_run_with_pictures_is_a_run_with_the_file_of_their_lora(
    pipe: QwenImagePipeline, small: dict[str, Any], tmp_path: Path
) -> None:
    plain = pipe(**small)
    drawn = pipe(**small, i2l_images=PICTURES, i2l_strength=0.5)
    assert not torch.allclose(drawn, plain, atol=1e-2)
    assert torch.equal(pipe(**small), plain)  # nothing stays

    file = tmp_path / "lora.safetensors"
    save_lora(lora_of(pipe, i2l_images=PICTURES), file, "diffsynth")
    pipe.load_lora(file, strength=0.5)
    assert torch.equal(pipe(**small), drawn)
    pipe.clear_lora()
    assert torch.equal(pipe(**small, i2l_images=PICTURES, i2l_strength=0), plain)


def test_names_and_shapes_in_the_file_are_the_published_ones(pipe: QwenImagePipeline, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_lora(lora_of(pipe, i2l_images=PICTURES), file, "diffsynth")
    tensors = load_file(file)
    assert set(tensors) == {f"{layer}.lora_{side}.default.weight" for layer in LAYERS for side in "AB"}
    rank = 4 * len(PICTURES)
    assert tensors["transformer_blocks.1.img_mlp.net.2.lora_A.default.weight"].shape == (rank, 256)
    assert tensors["transformer_blocks.0.txt_mod.1.lora_B.default.weight"].shape == (384, rank)
    assert load_lora(file).metadata["i2l_mode"] == "style"


def test_the_change_is_the_mean_over_pictures_of_the_sum_over_networks(pipe: QwenImagePipeline) -> None:
    layer = "transformer_blocks.1.img_mod.1"
    alone = [
        change(lora_of(pipe, i2l_images=[picture], i2l_mode=mode), layer)
        for mode in ("style", "coarse")
        for picture in PICTURES
    ]
    together = lora_of(pipe, i2l_images=PICTURES, i2l_mode="coarse+style")
    assert together.modules[layer].rank == 4 * 2 * 2
    torch.testing.assert_close(change(together, layer), sum(alone) / 2, atol=1e-4, rtol=1e-4)


def test_the_bias_is_added_once_whatever_the_number_of_pictures(
    pipe: QwenImagePipeline, published: Path
) -> None:
    layer = LAYERS[0]
    bias = bias_weights([layer])
    expected = bias[f"{layer}.lora_B.default.weight"] @ bias[f"{layer}.lora_A.default.weight"]
    for pictures in (PICTURES, PICTURES[:1]):
        plain, with_bias = (
            change(lora_of(pipe, i2l_images=pictures, i2l_mode=mode), layer)
            for mode in ("coarse", "coarse+bias")
        )
        torch.testing.assert_close(with_bias - plain, expected, atol=1e-4, rtol=1e-4)


def test_a_plan_computes_nothing_and_prompts_share_one_lora(
    pipe: QwenImagePipeline, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import qwenimage_i2l.lora as module

    made: list[int] = []
    make = module.make_lora
    monkeypatch.setattr(module, "make_lora", lambda *a, **k: (made.append(1), make(*a, **k))[1])
    assert "adapter i2l" in str(pipe.explain(**small, i2l_images=PICTURES))
    assert not made
    prompts = ["a red circle", "a blue square"]
    both = pipe(**{**small, "prompt": prompts}, i2l_images=PICTURES)
    assert len(made) == 1
    for prompt, found in zip(prompts, both, strict=True):
        assert torch.equal(pipe(**{**small, "prompt": prompt}, i2l_images=PICTURES), found)


def test_every_picture_counts_and_their_order_does_not(pipe: QwenImagePipeline) -> None:
    layer = LAYERS[-1]
    one, other, both, turned = (
        change(lora_of(pipe, i2l_images=pictures), layer)
        for pictures in (PICTURES[:1], PICTURES[1:], PICTURES, PICTURES[::-1])
    )
    assert (one - other).abs().max() > 0.1 * one.abs().max()
    torch.testing.assert_close(both, turned, atol=1e-5, rtol=1e-5)


def test_in_half_precision_the_encoders_stay_close(pipe: QwenImagePipeline) -> None:
    """Frequencies and positions are not rounded with the weights."""
    from qwenimage_i2l.encoders import embed_dinov3, embed_siglip2

    square = picture(0, (64, 64))
    for kind, embed in (("siglip2_image_encoder", embed_siglip2), ("dinov3_image_encoder", embed_dinov3)):
        component = pipe.components[kind][0]
        exact = embed(component.load(), square)
        rounded = embed(component.module.to(torch.bfloat16), square).float()
        component.release()
        assert (rounded - exact).norm() < 0.05 * exact.norm()
        component.skeleton.to(torch.float32)
        torch.testing.assert_close(embed(component.load(), square), exact, atol=0, rtol=0)


@pytest.mark.parametrize("recipe", qwenimage_i2l.RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_draws_its_example(recipe: Any, hub: Path, small: dict[str, Any]) -> None:
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=hub, skip_download=True, plugins=[qwenimage_i2l]
    )
    pictures = [picture(i) for i, _ in enumerate(recipe.example["i2l_images"][:1])]
    request = {**recipe.example, "i2l_images": pictures}
    plan = pipe.plan(**request)
    assert (plan.steps, plan.request.i2l_mode) == (50, recipe.defaults["i2l_mode"])
    assert plan.options.activation == "quick_gelu"
    with_lora = pipe(**{**small, **request})
    assert not torch.allclose(with_lora, pipe(**{**small, **request}, i2l_strength=0.5), atol=1e-3)
