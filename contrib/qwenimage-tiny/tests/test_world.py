"""The generator, the captions, the renderer and the judge agree with each other."""

import random

import pytest
import torch

from qwenimage_tiny.captions import caption
from qwenimage_tiny.judge import judge, read
from qwenimage_tiny.render import colour, render
from qwenimage_tiny.scenes import (
    COLOURS,
    HELD_OUT_GROUNDS,
    HELD_OUT_SHAPES,
    SHAPES,
    Scene,
    make_thing,
    sample_scene,
)


def scenes(count: int, held_out: bool = False) -> list[Scene]:
    rng = random.Random(5)
    return [sample_scene(rng, held_out) for _ in range(count)]


def test_every_rendered_scene_passes_the_judge():
    for scene in [*scenes(60), *scenes(60, held_out=True)]:
        assert judge(render(scene), scene).everything, scene


def test_training_scenes_have_no_held_out_combination():
    for scene in scenes(2000):
        for thing in scene.things:
            assert (thing.colour, thing.shape) not in HELD_OUT_SHAPES
            assert (thing.colour, scene.ground) not in HELD_OUT_GROUNDS


def test_held_out_scenes_have_one():
    assert all(scene.held_out for scene in scenes(200, held_out=True))


def test_held_out_combinations_leave_every_colour_and_shape_in_training():
    seen = {(thing.colour, thing.shape) for scene in scenes(3000) for thing in scene.things}
    assert len(seen) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_SHAPES)


def test_the_readme_prompt_is_a_training_caption():
    scene = Scene("blue", (make_thing("red", "circle", "medium", "centre"),))
    rng = random.Random(0)
    assert "a red circle on a blue background" in {caption(scene, rng) for _ in range(200)}
    assert not scene.held_out


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"ground": "green"}, "ground"),
        ({"colour": "white"}, "shape_colour"),
        ({"place": "left"}, "position"),
        ({"shape": "square"}, "shape"),
    ],
)
def test_the_judge_sees_each_kind_of_mistake(change, wrong):
    def scene(ground="blue", colour="red", shape="circle", place="top"):
        return Scene(ground, (make_thing(colour, shape, "medium", place),))

    verdict = judge(render(scene(**change)), scene())
    assert not getattr(verdict, wrong)
    assert not verdict.everything
    others = {"ground", "shape_colour", "position", "shape"} - {wrong}
    assert all(getattr(verdict, other) for other in others)


def test_an_additional_thing_makes_the_position_wrong():
    one = make_thing("red", "circle", "medium", "left")
    two = make_thing("red", "circle", "medium", "right")
    assert not judge(render(Scene("blue", (one, two))), Scene("blue", (one,))).position


def test_the_judge_of_an_empty_picture_finds_nothing():
    ground, found = read(colour("green").expand(3, 128, 128))
    assert (ground, found) == ("green", [])
    scene = Scene("green", (make_thing("red", "circle", "medium", "left"),))
    verdict = judge(colour("green").expand(3, 128, 128), scene)
    assert verdict.ground
    assert not (verdict.shape_colour or verdict.position or verdict.shape)


def test_a_blob_is_no_shape():
    picture = colour("blue").expand(3, 128, 128).clone()
    generator = torch.Generator().manual_seed(0)
    blob = torch.nn.functional.interpolate(
        torch.rand(1, 1, 12, 12, generator=generator), size=(60, 60), mode="nearest"
    )[0, 0]
    picture[:, 30:90, 30:90] = torch.where(blob > 0.45, colour("red"), picture[:, 30:90, 30:90])
    scene = Scene("blue", (make_thing("red", "circle", "large", "centre"),))
    assert not judge(picture, scene).shape


def test_two_things_never_touch():
    for scene in scenes(300):
        if len(scene.things) == 2:
            assert len(read(render(scene))[1]) == 2
