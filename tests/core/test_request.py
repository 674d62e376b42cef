"""Requests: published names and defaults, and an error for every value that could not act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwenimage_core.errors import RequestError
from qwenimage_core.registry import PluginRegistry

REGISTRY = PluginRegistry.discover(disable_all=True)


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size)


def test_published_defaults() -> None:
    request = REGISTRY.request()
    published = {
        "prompt": "",
        "negative_prompt": "",
        "cfg_scale": 4.0,
        "input_image": None,
        "denoising_strength": 1.0,
        "inpaint_mask": None,
        "inpaint_blur_size": None,
        "inpaint_blur_sigma": None,
        "height": 1328,
        "width": 1328,
        "seed": None,
        "rand_device": "cpu",
        "num_inference_steps": 30,
        "exponential_shift_mu": None,
        "tiled": False,
        "tile_size": 128,
        "tile_stride": 64,
    }
    assert {name: getattr(request, name) for name in published} == published


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"denoising_strength": 0.5}, "needs input_image"),
        ({"inpaint_mask": picture()}, "needs input_image"),
        ({"input_image": picture()}, "does nothing at denoising_strength 1"),
        ({"inpaint_blur_size": 3, "inpaint_blur_sigma": 1.0}, "need inpaint_mask"),
        ({"input_image": picture(), "inpaint_mask": picture(), "inpaint_blur_size": 3}, "alone does nothing"),
        ({"height": 100}, "100 is no multiple of 16; use 96 or 112"),
        ({"width": 24}, "use 16 or 32"),
        ({"tiled": True, "tile_size": 32, "tile_stride": 48}, "would leave gaps"),
        ({"tile_size": 32}, "do nothing without tiled"),
        ({"cfg_scale": 1, "negative_prompt": "blurry"}, "does nothing at cfg_scale 1"),
        ({"cfg_scale": 1, "cfg_normalize": True}, "does nothing at cfg_scale 1"),
        ({"denoising_strength": 0, "input_image": picture()}, "greater than 0"),
        ({"num_inference_steps": 0}, "greater than or equal to 1"),
        ({"seed": -1}, "seed"),
        ({"prompt": []}, "empty list"),
        ({"output_type": "jpeg"}, "'pil', 'tensor' or 'latent'"),
    ],
)
def test_values_that_cannot_act_say_what_would(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as error:
        REGISTRY.request(**fields)
    assert says in str(error.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RequestError) as error:
        REGISTRY.request(height=100, cfg_scale=-1, seed="x")
    assert all(name in str(error.value) for name in ("height", "cfg_scale", "seed"))


def test_pictures_are_read_from_paths(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    Image.new("RGB", (32, 16), "red").save(path)
    request = REGISTRY.request(input_image=path, denoising_strength=0.5)
    assert request.input_image.size == (32, 16)
    assert request.input_image.filename == str(path)


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "number"])
def test_pictures_that_cannot_be_read_say_why(kind: str, tmp_path: Path) -> None:
    path: Any = tmp_path / "in.png"
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "number":
        path = 7
    with pytest.raises(RequestError) as error:
        REGISTRY.request(input_image=path, denoising_strength=0.5)
    assert "input_image" in str(error.value)
    assert (
        "no picture at" if kind == "missing" else "not int" if kind == "number" else "cannot be read"
    ) in str(error.value)


def test_pictures_of_absurd_size_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (12000, 12000)).save(path)
    with pytest.raises(RequestError, match="12000 x 12000"):
        REGISTRY.request(input_image=path, denoising_strength=0.5)
