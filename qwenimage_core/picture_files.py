"""Picture files that carry the record of how they were made, written whole or not at all.

PNG has the record in an iTXt chunk `qwenimage` (and as readable text in `parameters`), JPEG and WebP in the EXIF
UserComment. What is read may come from anywhere: it is bounded and checked.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError, QwenImageError
from qwenimage_core.metadata import MAX_CHARACTERS, PictureMetadata
from qwenimage_core.writing import whole_file

if TYPE_CHECKING:
    from PIL import Image

CHUNK = "qwenimage"
EXIF_IFD, USER_COMMENT, ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: colour under alpha 0 too
}


def check_target(path: Path, *, overwrite: bool = False, suffixes: Collection[str] = tuple(KINDS)) -> None:
    """QwenImageError if no file could be saved at `path`: to be known before a picture is drawn."""
    if path.suffix.lower() not in suffixes:
        raise QwenImageError(
            f"{path} has no suffix of a picture.", got=path.suffix or "none", expected=" ".join(suffixes)
        )
    if not path.parent.is_dir():
        raise QwenImageError(f"There is no folder {path.parent}.", mend=f"mkdir -p {path.parent}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise QwenImageError(
            f"{path} exists already.", mend="give another name with --output, or add --overwrite"
        )


def save_picture(
    image: Image.Image, path: str | os.PathLike[str], metadata: PictureMetadata, *, overwrite: bool = False
) -> Path:
    """Write `image` with its record; the suffix chooses PNG, JPEG (quality 95) or lossless WebP.

    Written beside and renamed, so a full disk or Ctrl-C leaves nothing behind. QwenImageError if the folder is not
    there, the file is (unless `overwrite`), or the format cannot hold the picture or its record.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    kind, settings = KINDS[path.suffix.lower()]
    if kind == "JPEG" and image.mode not in ("RGB", "L"):
        raise QwenImageError(
            f"JPEG cannot hold this picture ({path}).", got=image.mode, mend="save it as .png or .webp"
        )
    carrier = _png_text(metadata) if kind == "PNG" else _exif(metadata, kind)
    try:
        with whole_file(path) as beside, beside.open("wb") as file:
            image.save(file, format=kind, **settings, **carrier)
    except OSError as error:
        raise QwenImageError(f"{path} cannot be written: {error}") from error
    return path


def _png_text(metadata: PictureMetadata) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt(CHUNK, _bounded(metadata.to_json(), MAX_CHARACTERS, "a picture"))
    text.add_itxt("parameters", metadata.readable())
    return {"pnginfo": text}


def _exif(metadata: PictureMetadata, kind: str) -> dict[str, Any]:
    from PIL import Image

    exif = Image.Exif()
    limit = 65_000 if kind == "JPEG" else MAX_CHARACTERS  # one JPEG segment holds 65,533 bytes
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + _bounded(metadata.to_json(), limit, kind).encode("ascii")
    return {"exif": exif.tobytes()}


def _bounded(text: str, limit: int, holder: str) -> str:
    if len(text) > limit:
        raise QwenImageError(
            f"The request is too long to be written into {holder}.",
            got=f"{len(text)} characters",
            expected=f"at most {limit}",
            mend="save as .png, or shorten the prompt",
        )
    return text


def read_metadata(path: str | os.PathLike[str]) -> PictureMetadata:
    """The record in a picture. Reads headers only; LoadError if there is no picture or no sound record in it."""
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise LoadError(f"There is no picture at {path}.")
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            text = picture.info.get(CHUNK)
            comment = None if text else picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LoadError(f"{path} cannot be read as a picture: {error}") from error
    if isinstance(comment, bytes) and comment.startswith(ASCII):
        text = comment.removeprefix(ASCII).decode("ascii", "replace")
    if not isinstance(text, str) or (comment is not None and not text.startswith("{")):
        raise LoadError(
            f"{path} carries no record of how it was made.",
            expected="a picture written by qwenimage; programs that save a picture anew often drop it",
        )
    return PictureMetadata.from_json(text, str(path))
