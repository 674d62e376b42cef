"""Pictures are read as they are shown, and cut by the published numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenimage_core.errors import LoadError
from qwenimage_training.data.pictures import Cut, check_aligned, fitted_size, picture_size, read_picture

sides = st.integers(1, 5000)


# reference sizes of the published trainer, cap 1048576
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((2000, 1000), (1440, 720)),
        ((513, 770), (512, 768)),
        ((4000, 500), (2896, 352)),
        ((1024, 1024), (1024, 1024)),
    ],
)
def test_published_sizes(source, size) -> None:
    assert fitted_size(source, 1048576, "here") == size


@settings(deadline=None)  # machines under test are busy
@given(width=sides, height=sides, cap=st.integers(256, 2**22))
def test_sizes_are_multiples_within_the_cap_and_the_source(width: int, height: int, cap: int) -> None:
    try:
        size = fitted_size((width, height), cap, "row 7")
    except LoadError as error:
        assert "row 7" in str(error)
        scale = max(1.0, (width * height / cap) ** 0.5)
        assert min(width, height) / scale < 16
        return
    assert size[0] % 16 == size[1] % 16 == 0
    assert 0 < size[0] <= width
    assert 0 < size[1] <= height
    assert size[0] * size[1] <= cap


@settings(deadline=None)  # machines under test are busy
@given(source=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_a_cut_covers_and_is_central(source, size) -> None:
    cut = Cut.centre(source, size)
    right, bottom = cut.scaled[0] - size[0] - cut.left, cut.scaled[1] - size[1] - cut.top
    assert min(cut.left, cut.top, right, bottom) >= 0
    assert abs(cut.left - right) <= 1
    assert abs(cut.top - bottom) <= 1
    assert (
        cut.left == right == 0 or cut.top == bottom == 0
    )  # one side fits exactly: nothing is cut needlessly


@settings(deadline=None)  # machines under test are busy
@given(times=st.integers(1, 4), at=st.floats(0.3, 0.7), size=st.sampled_from([(32, 32), (48, 16), (16, 64)]))
def test_one_cut_puts_pictures_of_two_resolutions_on_each_other(times: int, at: float, size) -> None:
    def edge(picture: Image.Image) -> int:
        """Where the white half begins."""
        return sum(value < 128 for value in picture.convert("L").crop((0, 0, picture.width, 1)).tobytes())

    def halves(width: int, height: int) -> Image.Image:
        drawn = Image.new("RGB", (width, height))
        drawn.paste((255, 255, 255), (round(width * at), 0, width, height))
        return drawn

    target, control = halves(160, 120), halves(160 * times, 120 * times)
    cut = Cut.centre(target.size, size)
    assert cut.apply(target).size == cut.apply(control).size == size
    assert abs(edge(cut.apply(target)) - edge(cut.apply(control))) <= 1


def test_a_picture_of_another_aspect_does_not_fit() -> None:
    check_aligned((1000, 667), (512, 341), "row 1")
    with pytest.raises(LoadError, match="row 1") as caught:
        check_aligned((1000, 667), (512, 512), "row 1")
    assert "512 x 512" in str(caught.value)
    assert "--aligned_fields" in str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_a_turned_photograph_is_read_upright(folder, name: str) -> None:
    file = folder.path / name
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    drawn = Image.new("RGB", (64, 32), "black")
    drawn.paste("white", (0, 0, 32, 32))
    drawn.save(file, exif=exif, quality=95)
    shown = read_picture(file, "RGB", "row 1")
    assert shown.size == (32, 64) == picture_size(file, "row 1")
    assert shown.getpixel((16, 5))[0] > 200  # what was left is on top
    assert shown.getpixel((16, 60))[0] < 50


def test_exif_data_behind_the_pixels_of_a_png_counts(folder) -> None:
    file = folder.path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(file, exif=exif)
    content = file.read_bytes()
    at = content.index(b"eXIf") - 4
    length = int.from_bytes(content[at : at + 4]) + 12
    rest, end = content[:at] + content[at + length : -12], content[-12:]
    file.write_bytes(rest + content[at : at + length] + end)
    assert picture_size(file, "row 1") == (32, 64) == read_picture(file, "RGB", "row 1").size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(folder, mode: str) -> None:
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 16, 32))
    picture.convert(mode).save(folder.path / "a.png")
    shown = read_picture(folder.path / "a.png", "RGB", "row 1")
    assert shown.mode == "RGB"
    assert shown.getpixel((30, 5)) == (255, 255, 255)
    assert shown.getpixel((2, 5)) != (255, 255, 255)


def test_sixteen_bits_are_scaled_and_not_clipped(folder) -> None:
    depth = Image.new("I;16", (4, 1))
    for x, value in enumerate((0, 257, 128 * 257, 65535)):
        depth.putpixel((x, 0), value)
    depth.save(folder.path / "a.png")
    shown = read_picture(folder.path / "a.png", "RGB", "row 1")
    assert [shown.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_values_without_a_range_are_refused(folder) -> None:
    Image.new("F", (4, 4), 0.5).save(folder.path / "a.tif")
    with pytest.raises(LoadError, match="row 1") as caught:
        read_picture(folder.path / "a.tif", "RGB", "row 1")
    assert "32 bits" in str(caught.value)


def test_layers_keep_their_transparency(folder) -> None:
    folder.picture("a.png", colour=(0, 255, 0, 100), mode="RGBA")
    assert read_picture(folder.path / "a.png", "RGBA", "row 1").getpixel((0, 0)) == (0, 255, 0, 100)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_picture_is_named(folder, content: bytes) -> None:
    (folder.path / "a.png").write_bytes(content)
    for read in (
        lambda: read_picture(folder.path / "a.png", "RGB", "row 3, image"),
        lambda: picture_size(folder.path / "a.png", "row 3, image"),
    ):
        with pytest.raises(LoadError, match="row 3, image") as caught:
            read()
        assert "a.png" in str(caught.value)


def test_a_truncated_picture_is_named(folder) -> None:
    file = folder.path / "a.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:-400])
    assert picture_size(file, "row 3") == (64, 64)  # its header is whole
    with pytest.raises(LoadError, match="row 3"):
        read_picture(file, "RGB", "row 3")


def test_a_picture_beyond_the_bound_is_refused(folder) -> None:
    Image.new("1", (9000, 9000)).save(folder.path / "a.png")
    for read in (lambda p: read_picture(p, "RGB", "row 3"), lambda p: picture_size(p, "row 3")):
        with pytest.raises(LoadError, match="cannot be read") as caught:
            read(folder.path / "a.png")
        assert "9000 x 9000" in str(caught.value)
