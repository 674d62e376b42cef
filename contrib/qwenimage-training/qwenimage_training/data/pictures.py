"""Reading a dataset's pictures and cutting them to size.

Sizes are (width, height) in pixels, as pillow has them. The rules are those of published training: shrink to an area,
floor to multiples of 16, scale (bilinear) to cover, cut the centre.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from qwenimage_core.errors import LoadError
from qwenimage_core.images import MAX_PIXELS, open_picture
from qwenimage_training.data.arguments import MULTIPLE

Size = tuple[int, int]
Mode = Literal["RGB", "RGBA"]

ORIENTATION = 0x0112  # EXIF tag; values from 5 on turn the picture by 90 degrees
ALIGNED_WITHIN = 0.02  # relative difference of aspect: preprocessors round the sizes of what they make


def picture_size(path: Path, where: str) -> Size:
    """The size of a picture as it is shown (EXIF rotation applied), read from its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reading is bounded by ours
            with Image.open(path) as picture:
                turned = _is_turned(picture, path)
                width, height = picture.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise _unreadable(where, error) from error
    if width * height > MAX_PIXELS:
        raise _unreadable(where, f"{path} has {width} x {height} pixels; at most {MAX_PIXELS} are read")
    return (height, width) if turned else (width, height)


def _is_turned(picture: Image.Image, path: Path) -> bool:
    """Whether height and width change places when it is shown. Pillow turns TIFF itself, and would decode the whole
    of a PNG to look for EXIF data behind the pixels: whether there is any is seen faster in the file."""
    if picture.format == "TIFF":
        return False
    in_header = picture.format == "PNG" and not _has_text_behind_pixels(path)
    exif = Image.Image.getexif(picture) if in_header else picture.getexif()
    return exif.get(ORIENTATION, 1) >= 5


def _has_text_behind_pixels(png: Path) -> bool:
    """Walk over the chunks of a PNG file: 4 bytes of length, 4 of kind, the content, 4 of checksum."""
    behind = False
    with png.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            if behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            behind = behind or kind == b"IDAT"
            file.seek(int.from_bytes(head[:4]) + 4, 1)
    return False


def read_picture(path: Path, mode: Mode, where: str) -> Image.Image:
    """A picture as it is shown: turned as its EXIF data says; for RGB, what is transparent lies on white."""
    try:
        picture = open_picture(path)
        shown = ImageOps.exif_transpose(picture)
        if mode == "RGBA" or not shown.has_transparency_data:
            return shown.convert(mode)
        rgba = shown.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # a ValueError of open_picture says what it is about
        raise _unreadable(where, error) from error


def _unreadable(where: str, why: object) -> LoadError:
    return LoadError(
        f"{where}: this picture cannot be read.",
        got=why,
        expected="a complete picture in a format that pillow reads",
        mend="replace the file or leave the row out; `qwenimage dataset check` lists all of them",
    )


def fitted_size(source: Size, max_pixels: int, where: str) -> Size:
    """The size that published training cuts a picture to: at most `max_pixels`, sides floored to multiples of 16,
    never above the source's."""
    width, height = source
    if width * height > max_pixels:
        scale = (width * height / max_pixels) ** 0.5
        width, height = int(width / scale), int(height / scale)
    fitted = width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
    if 0 in fitted:
        raise LoadError(
            f"{where}: a side of this picture would become 0.",
            got=f"{source[0]} x {source[1]} pixels, {width} x {height} within max_pixels {max_pixels}",
            expected=f"at least {MULTIPLE} pixels a side",
            mend="leave it out, or use --height and --width, which enlarge",
        )
    return fitted


@dataclass(frozen=True)
class Cut:
    """How a picture is cut: scaled to `scaled`, then `size` pixels are taken from (left, top) on.

    Made from the target's size, it cuts every aligned picture of the row in the same place, whatever its resolution.
    """

    scaled: Size
    left: int
    top: int
    size: Size

    @classmethod
    def centre(cls, source: Size, size: Size) -> Cut:
        """Scale `source` until it covers `size`, and take the centre."""
        scale = max(size[0] / source[0], size[1] / source[1])
        scaled = max(round(source[0] * scale), size[0]), max(round(source[1] * scale), size[1])
        return cls(scaled, round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2), size)

    def apply(self, picture: Image.Image) -> Image.Image:
        if picture.size == self.scaled == self.size:
            return picture
        box = (self.left, self.top, self.left + self.size[0], self.top + self.size[1])
        return picture.resize(self.scaled, Image.Resampling.BILINEAR).crop(box)


def check_aligned(target: Size, other: Size, where: str) -> None:
    """Refuse a picture that cannot lie on the target because it has another aspect."""
    if abs(target[0] * other[1] / (target[1] * other[0]) - 1) <= ALIGNED_WITHIN:
        return
    raise LoadError(
        f"{where}: this picture does not fit on its target.",
        got=f"{other[0]} x {other[1]} pixels",
        expected=f"the aspect of the target, {target[0]} x {target[1]}",
        mend="make it from the target; or name the columns that must fit in --aligned_fields, without this one",
    )
