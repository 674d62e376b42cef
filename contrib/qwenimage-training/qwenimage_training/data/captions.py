"""A folder of pictures, each with its caption beside it in a .txt file of the same name -> records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwenimage_core.errors import LoadError, QwenImageError
from qwenimage_training.data.metadata import PICTURES, SUFFIXES, OnError, Record, report

NAMED = 5


def read_captions(base: Path, on_error: OnError | None = None) -> Iterator[Record]:
    """A record for each picture, in the order of their paths; sub-folders are read, hidden files are not."""
    files = sorted(
        file.relative_to(base)
        for file in base.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(base).parts) and file.is_file()
    )
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    captions = {file for file in files if file.suffix == ".txt"}
    if not pictures:
        raise LoadError(
            f"{base} holds neither metadata nor pictures.",
            got=f"{len(files)} other files",
            expected=f"{', '.join('metadata' + s for s in SUFFIXES)}, or pictures with .txt captions",
            mend="give --dataset_metadata_path, or put a .txt of the same name beside each picture",
        )
    stems = {picture.with_suffix(".txt") for picture in pictures}
    silent = [str(p) for p in pictures if p.with_suffix(".txt") not in captions]
    faults = [
        _unpaired("Pictures without a caption", silent, "a .txt of the same name beside each"),
        _unpaired(
            "Captions without a picture", sorted(map(str, captions - stems)), "a picture of the same name"
        ),
    ]
    for fault in filter(None, faults):
        report(fault, on_error)
    for picture in pictures:
        if picture.with_suffix(".txt") in captions:
            try:
                caption = _caption(base / picture.with_suffix(".txt"))
            except QwenImageError as error:
                report(error, on_error)
            else:
                yield Record(str(picture), caption, {"image": picture.as_posix()})


def _unpaired(what: str, files: list[str], expected: str) -> LoadError | None:
    if not files:
        return None
    some = ", ".join(files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
    return LoadError(f"{what}.", got=some, expected=expected, mend="an empty .txt trains without a caption")


def _caption(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise LoadError(
            f"{file} is not UTF-8.", got=error, expected="UTF-8 text", mend="save it as UTF-8"
        ) from error
