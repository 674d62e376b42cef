"""The chosen latents hold what a scene is."""

import random

import torch

from qwenimage_tiny import latents
from qwenimage_tiny.judge import judge
from qwenimage_tiny.render import render
from qwenimage_tiny.scenes import sample_scene


def test_scenes_survive_their_latents():
    rng = random.Random(2)
    scenes = [sample_scene(rng) for _ in range(60)]
    pictures = torch.stack([render(scene) for scene in scenes])
    sketches = latents.sketch(latents.normalise(latents.cells(pictures))).clamp(-1, 1)
    right = sum(judge(sketch, scene).everything for sketch, scene in zip(sketches, scenes, strict=True))
    assert right / len(scenes) >= 0.95


def test_a_tilted_plane_is_kept_exactly():
    ramp = torch.linspace(-0.5, 0.5, 64)
    picture = (ramp[:, None] - 0.3 * ramp[None, :]).expand(1, 3, 64, 64)
    again = latents.sketch(latents.normalise(latents.cells(picture)))
    torch.testing.assert_close(again, picture, atol=1e-5, rtol=0)


def test_unused_channels_are_zero():
    z = latents.normalise(latents.cells(torch.rand(2, 3, 32, 32) * 2 - 1))
    assert z.shape == (2, latents.CHANNELS, 4, 4)
    assert (z[:, latents.ACTIVE :] == 0).all()
