"""What is wrong with one row: all of it, not the first fault only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from qwenimage_core.errors import LoadError, QwenImageError
from qwenimage_training.data.buckets import cut_away
from qwenimage_training.data.fields import PICTURE_COLUMNS, RGBA, matches
from qwenimage_training.data.metadata import PICTURES, Record
from qwenimage_training.data.pictures import Size, check_aligned, read_picture
from qwenimage_training.data.rows import RowReader
from qwenimage_training.data.tokens import ENTITY_LIMIT, TokenCounter

MUCH_CUT = 0.25  # of a picture's area; more is worth a look

Kind = Literal["metadata", "file", "size", "pair", "tokens", "duplicate", "cut", "column"]


@dataclass(frozen=True)
class Finding:
    """An error stops training or spoils a row; a warning is worth a look."""

    kind: Kind
    severity: Literal["error", "warning"]
    where: str
    message: str

    @classmethod
    def of(cls, kind: Kind, error: QwenImageError, where: str = "") -> Finding:
        """An error's own words on one line."""
        parts = {"got": error.got, "expected": error.expected, "to mend": error.mend}
        tail = "; ".join(f"{name} {text}" for name, text in parts.items() if text)
        return cls(kind, "error", where, f"{error.what} {tail}".strip())


@dataclass(frozen=True)
class RowFacts:
    """What checking found out about a row; `trained` and `identity` are None where its files cannot be used."""

    findings: tuple[Finding, ...]
    source: Size | None
    trained: Size | None
    identity: str | None
    target: str | None
    tokens: int


def look_at(record: Record, reader: RowReader, tokens: TokenCounter) -> RowFacts:
    """Decode every picture of a row and weigh what the row says."""
    findings: list[Finding] = []
    sizes, hashes = _files(record, reader, findings)
    source = next(iter(sizes.get("image", ())), None)
    trained = None
    if source is not None:
        findings += _misfits(record, reader, source, sizes)
        try:
            trained = reader.sizes.of(source, f"{record.where}, image")
        except LoadError as error:
            findings.append(Finding.of("size", error, record.where))
        else:
            findings += _much_cut(record, source, trained)
    findings += _incomplete(record)
    findings += _unread(record, reader)
    length = tokens.count(record.prompt)
    findings += _too_long(record, tokens, length)
    whole = not any(finding.kind == "file" for finding in findings)
    rest = {column: value for column, value in record.values.items() if column not in hashes}
    return RowFacts(
        findings=tuple(findings),
        source=source,
        trained=trained,
        identity=repr((record.prompt, sorted(hashes.items()), sorted(rest.items()))) if whole else None,
        target=repr(hashes["image"]) if whole else None,
        tokens=length,
    )


def _files(
    record: Record, reader: RowReader, findings: list[Finding]
) -> tuple[dict[str, list[Size]], dict[str, list[str]]]:
    """Sizes and digests of the files of each column; those that cannot be read are findings."""
    sizes: dict[str, list[Size]] = {}
    hashes: dict[str, list[str]] = {}
    for column in reader.file_keys:
        value = record.values.get(column)
        for name in value if isinstance(value, list) else [value] if value is not None else []:
            where = f"{record.where}, {column}"
            try:
                path = reader.root.find(name, where)
                picture = read_picture(path, "RGBA" if matches(column, RGBA) else "RGB", where)
            except LoadError as error:
                findings.append(Finding.of("file", error, record.where))
            else:
                sizes.setdefault(column, []).append(picture.size)
                hashes.setdefault(column, []).append(_digest(path, path.stat().st_mtime_ns))
                if not reader.is_aligned(column):
                    findings += _unfit(picture.size, reader, where, record)
    return sizes, hashes


@lru_cache(maxsize=65536)
def _digest(path: Path, changed: int) -> str:
    """sha256 of a file, once for all rows that name it; `changed` is its modification time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unfit(size: Size, reader: RowReader, where: str, record: Record) -> Iterator[Finding]:
    try:
        reader.sizes.alone(size, where)
    except LoadError as error:
        yield Finding.of("size", error, record.where)


def _misfits(
    record: Record, reader: RowReader, source: Size, sizes: dict[str, list[Size]]
) -> Iterator[Finding]:
    for column in filter(reader.is_aligned, sizes):
        for size in sizes[column]:
            try:
                check_aligned(source, size, f"{record.where}, {column}")
            except LoadError as error:
                yield Finding.of("pair", error, record.where)


def _much_cut(record: Record, source: Size, trained: Size) -> Iterator[Finding]:
    lost = cut_away(source, trained)
    if lost > MUCH_CUT:
        text = f"{lost:.0%} of the target is cut away: {source[0]} x {source[1]} becomes {trained[0]} x {trained[1]}"
        yield Finding("cut", "warning", record.where, text)


def _count(value: Any) -> int:
    return 0 if value is None else len(value) if isinstance(value, list) else 1


def _incomplete(record: Record) -> Iterator[Finding]:
    """Columns of the published variants that mean something only together."""
    values = record.values
    masks, prompts = (_count(values.get(f"eligen_entity_{what}")) for what in ("masks", "prompts"))
    if masks != prompts:
        text = f"eligen_entity_masks and eligen_entity_prompts do not pair: got {masks} masks and {prompts} prompts"
        yield Finding("pair", "error", record.where, text)
    if "blockwise_controlnet_inpaint_mask" in values and "blockwise_controlnet_image" not in values:
        text = "blockwise_controlnet_inpaint_mask needs blockwise_controlnet_image, the picture to repaint"
        yield Finding("pair", "error", record.where, text)
    layers, count = values.get("image"), values.get("layer_num")
    if isinstance(count, int) and (not isinstance(layers, list) or len(layers) != count + 1):
        text = (
            f"layer_num is {count}, image names {_count(layers)}: expected a list of {count + 1}, "
            "the whole picture first and then its layers"
        )
        yield Finding("pair", "error", record.where, text)


def _unread(record: Record, reader: RowReader) -> Iterator[Finding]:
    """Columns that name pictures and are not read as such."""
    for column, value in record.values.items():
        first = value[0] if isinstance(value, list) and value else value
        named = isinstance(first, str) and first.lower().endswith(PICTURES)
        if column not in reader.file_keys and (named or column in PICTURE_COLUMNS):
            text = f"{column} seems to name pictures and is not in --data_file_keys: it would stay text"
            yield Finding("column", "warning", record.where, text)


def _too_long(record: Record, tokens: TokenCounter, length: int) -> Iterator[Finding]:
    said = "" if tokens.exact else " by estimate"
    severity: Literal["error", "warning"] = "error" if tokens.exact else "warning"
    if "edit_image" not in record.values and length > tokens.limit:
        text = f"the prompt has {length} tokens{said}; at most {tokens.limit} can be trained"
        yield Finding("tokens", severity, record.where, text)
    entities = record.values.get("eligen_entity_prompts")
    for number, prompt in enumerate(entities if isinstance(entities, list) else [], 1):
        if isinstance(prompt, str) and (count := tokens.count(prompt)) > ENTITY_LIMIT:
            text = f"entity prompt {number} has {count} tokens{said}; at most {ENTITY_LIMIT} can be trained"
            yield Finding("tokens", severity, record.where, text)
