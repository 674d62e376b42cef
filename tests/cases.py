"""The generations that are compared with the peers, and the comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

SEED_OF_WEIGHTS = 3
WIDTH, HEIGHT = 96, 128
PROMPT = "a red circle on a blue background, 一个红色的圆"
SHARED: dict[str, Any] = {
    "prompt": PROMPT,
    "seed": 11,
    "height": HEIGHT,
    "width": WIDTH,
    "num_inference_steps": 4,
}


def picture() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((9, 31), (23, 7), (13, 17))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def mask() -> Image.Image:
    image = Image.new("L", (WIDTH, HEIGHT), 0)
    image.paste(255, (20, 30, 70, 100))
    return image


# Fields that we and DiffSynth-Studio take alike.
DIFFSYNTH: dict[str, dict[str, Any]] = {
    "plain": {"cfg_scale": 1.0},
    "guided": {"cfg_scale": 4.0, "negative_prompt": "blurry, grey"},
    "guided-by-the-empty-prompt": {},
    "mu-given": {"exponential_shift_mu": 1.7},
    "image-to-image": {"input_image": picture(), "denoising_strength": 0.6},
    "inpainting": {"input_image": picture(), "inpaint_mask": mask()},
    "inpainting-with-blur": {
        "input_image": picture(),
        "inpaint_mask": mask(),
        "inpaint_blur_size": 3,
        "inpaint_blur_sigma": 1.5,
        "denoising_strength": 0.8,
    },
    "tiled": {"tiled": True, "tile_size": 8, "tile_stride": 5},
    "tiled-image-to-image": {
        "input_image": picture(),
        "denoising_strength": 0.5,
        "tiled": True,
        "tile_size": 10,
        "tile_stride": 6,
    },
}

# Our fields, and what diffusers calls the same.
DIFFUSERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unguided": ({"cfg_scale": 1}, {}),
    "normalized-guidance": (
        {"cfg_scale": 4.0, "negative_prompt": "grey", "cfg_normalize": True},
        {"true_cfg_scale": 4.0, "negative_prompt": "grey"},
    ),
}


def assert_pictures_equal(ours: Image.Image, peer: Image.Image) -> None:
    """At most 1/255 apart on average and 3/255 anywhere."""
    assert ours.size == peer.size and ours.mode == peer.mode, (ours, peer)
    difference = np.abs(np.asarray(ours, dtype=np.int64) - np.asarray(peer, dtype=np.int64))
    assert np.asarray(peer).std() > 5, "a flat picture shows nothing"
    assert difference.mean() <= 1 and difference.max() <= 3, (difference.mean(), difference.max())
