"""What editing refuses, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import qwenimage_edit
from qwenimage_core import QwenImagePipeline, RequestError

from .conftest import Fields, MakePipe, picture


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"edit_image": []}, ["no pictures in it", "at least one"]),
        ({"edit_image": [None]}, ["A picture of edit_image is missing"]),
        ({"edit_image": 3}, ["edit_image", "a picture or the path of one is needed, not int"]),
        (
            {"edit_image": [picture(32, 32), "nowhere.png"]},
            ["edit_image", "there is no picture at nowhere.png"],
        ),
        ({"edit_image": [picture(32, 32), picture(33, 40)]}, ["Picture 2 of edit_image", "16", "33 x 40"]),
        (
            {"edit_image": Image.new("RGBA", (32, 32), (9, 9, 9, 99))},
            ["partly transparent", "RGBA", 'convert("RGB")'],
        ),
        ({"edit_image": Image.new("RGB", (16, 16 * 201))}, ["too long for the vision tower", "200"]),
        ({}, ["edit_image_auto_resize does nothing without edit_image"]),
    ],
    ids=["none", "missing", "number", "absent", "size", "alpha", "aspect", "resize alone"],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    fields: Fields, said: list[str], make_pipe: MakePipe, small: Fields
) -> None:
    pipe = make_pipe(qwenimage_edit)
    with pytest.raises(RequestError) as error:
        pipe("make it green", **small, **fields)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert not any(component.loaded for several in pipe.components.values() for component in several)


def test_fields_that_need_a_picture_say_so_together(pipe: QwenImagePipeline, bare: Fields) -> None:
    with pytest.raises(
        RequestError, match="edit_rope_interpolation and zero_cond_t do nothing without edit_image"
    ):
        pipe("x", **bare, edit_rope_interpolation=True, zero_cond_t=False)


def test_an_unreadable_file_is_named(pipe: QwenImagePipeline, small: Fields, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture(32, 32).tobytes()[:500])
    with pytest.raises(RequestError, match=r"broken\.png cannot be read as a picture"):
        pipe("x", **small, edit_image=str(broken))


def test_full_alpha_is_no_transparency(pipe: QwenImagePipeline, small: Fields) -> None:
    opaque, plain = picture(32, 32, "RGBA"), picture(32, 32)
    small["output_type"] = "latent"
    assert pipe("x", **small, edit_image=opaque).equal(pipe("x", **small, edit_image=plain))


def test_without_the_plugin_the_field_names_its_package(make_pipe: MakePipe, bare: Fields) -> None:
    with pytest.raises(
        RequestError, match=r'`edit_image` needs qwenimage-edit: pip install "qwenimage-core\[edit\]"'
    ):
        make_pipe()("x", **bare, edit_image=picture(32, 32))
