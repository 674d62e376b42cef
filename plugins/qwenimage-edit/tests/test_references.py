"""Sizes that references are brought to (those of the published pipelines), and what the text encoder is shown."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qwenimage_edit.references import ENCODED_AREA, SEEN_AREA, Reference, sides_of

from .conftest import picture


@pytest.mark.parametrize(
    ("given", "encoded", "seen"),
    [
        ((1024, 1328), (896, 1152), (352, 448)),
        ((1920, 1080), (1376, 768), (512, 288)),
        ((768, 1024), (896, 1184), (320, 448)),
        ((50, 50), (1024, 1024), (384, 384)),
    ],
)
def test_published_sizes(given: tuple[int, int], encoded: tuple[int, int], seen: tuple[int, int]) -> None:
    aspect = given[0] / given[1]
    assert (sides_of(ENCODED_AREA, aspect), sides_of(SEEN_AREA, aspect)) == (encoded, seen)


def test_a_single_picture_is_seen_as_it_is_encoded() -> None:
    reference = Reference.of(picture(30, 20), resize=True, several=False)
    assert reference.seen is reference.encoded


def test_one_of_several_is_seen_as_a_small_copy_of_what_is_encoded() -> None:
    given = picture(300, 200)
    reference = Reference.of(given, resize=True, several=True)
    assert reference.encoded.size == sides_of(ENCODED_AREA, 1.5)
    again = reference.encoded.resize(reference.seen.size, Image.Resampling.BICUBIC)
    assert np.array_equal(reference.seen, again)
    straight = given.resize(reference.seen.size, Image.Resampling.BICUBIC)
    assert not np.array_equal(reference.seen, straight)


def test_without_resizing_the_picture_is_encoded_as_it_is() -> None:
    given = picture(48, 32)
    reference = Reference.of(given, resize=False, several=True)
    assert np.array_equal(reference.encoded, given)
    assert reference.seen.size == sides_of(SEEN_AREA, 1.5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_opaque_picture_is_read_in_colour(mode: str) -> None:
    reference = Reference.of(picture(48, 32, mode), resize=False, several=False)
    assert reference.encoded.mode == "RGB"
