"""One safetensors file: its header checked byte for byte, and single tensors read on demand.

The header is read here, and not by the safetensors package, for two reasons: what is wrong with a file can be told in
numbers (a cut-off download is the commonest), and a tensor is read with plain reads into memory of its own instead of
through a memory map, so that the memory a process uses while loading stays at what it keeps.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then
the data; offsets count from the end of the JSON and tile the rest of the file without a gap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError

if TYPE_CHECKING:
    import io

    import torch

    from qwenimage_core.loading.encoding import Encoding

HEADER_LIMIT = 100_000_000

# safetensors name -> (torch name, bytes of one value)
DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

AGAIN = "delete the file and download it again"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor. `dtype` is torch's name; the bytes are file[start : start + nbytes], unless an
    `encoding` has its parts: then `nbytes` is of all of them, and shape and dtype are as decoded. `value` is a tensor
    that could only be read together with all others of its file, a pickle."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    nbytes: int
    encoding: Encoding | None = None
    value: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def stored_as(self) -> str:
        """The dtype in the file, or the name of its encoding."""
        return self.dtype if self.encoding is None else self.encoding.name


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, after every check that needs no tensor data.

    Raises LoadError for a file that is no safetensors file, is cut off, or contradicts itself.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(256)
        length = int.from_bytes(first[:8], "little")
        _check_beginning(file, size, first, length)
        stream.seek(8)
        raw = stream.read(length)
    header = _parse(file, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LoadError(f"{file} has metadata that is not text.", got=repr(metadata)[:200])
    begin = 8 + length
    tensors = {name: _info(file, name, entry, begin) for name, entry in header.items()}
    _check_extent(file, size, begin, tensors)
    return tensors, metadata


def read_tensor(info: TensorInfo, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor as stored, on the CPU: in memory of its own, or in the first bytes of `buffer` (flat, uint8)."""
    import torch

    if info.value is not None:
        return info.value
    flat = torch.empty(info.nbytes, dtype=torch.uint8) if buffer is None else buffer[: info.nbytes]
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.start)
        _fill(flat, stream, info)
    return flat.view(getattr(torch, info.dtype)).reshape(info.shape)


def read_pieces(info: TensorInfo, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor's elements as stored, flat and in their order, as many at a time as `buffer` (flat, uint8) holds. Each
    piece is overwritten by the next: one that stays in the processor's cache is cast at half the cost."""
    import torch

    dtype: torch.dtype = getattr(torch, info.dtype)
    room = buffer.numel() // dtype.itemsize * dtype.itemsize
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.start)
        for done in range(0, info.nbytes, room):
            piece = buffer[: min(room, info.nbytes - done)]
            _fill(piece, stream, info)
            yield piece.view(dtype)


def _fill(flat: torch.Tensor, stream: io.RawIOBase, info: TensorInfo) -> None:
    """Read as many bytes as `flat` has, from where the stream is."""
    target, done = memoryview(flat.numpy().data), 0
    while done < len(target):
        count = stream.readinto(target[done:])
        if not count:
            raise LoadError(
                f"{info.file} became shorter after it was opened.",
                got=f"{stream.tell():,} bytes",
                expected=f"{info.start + info.nbytes:,} bytes or more",
                mend=AGAIN,
            )
        done += count


def _check_beginning(file: Path, size: int, first: bytes, length: int) -> None:
    if first.startswith(b"version https://git-lfs"):
        raise LoadError(
            f"{file} is a Git LFS pointer, not the weights it points to.",
            got=f"{size:,} bytes of text",
            expected="a safetensors file",
            mend="run `git lfs pull` in that repository, or download the file from the hub",
        )
    if size < 9 or first[8:9] != b"{" or length > HEADER_LIMIT:
        raise LoadError(
            f"{file} is no safetensors file.",
            got=f"{size:,} bytes that begin with {first[:12]!r}",
            expected="an 8-byte length below 100 MB, then a JSON header",
            mend=AGAIN,
        )
    if 8 + length > size:
        raise LoadError(
            f"{file} is cut off inside its header.",
            got=f"{size:,} bytes",
            expected=f"{8 + length:,} bytes or more",
            mend=AGAIN,
        )


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise LoadError(
                f"{file} names something twice.", got=next(n for n in names if names.count(n) > 1)
            )
        return found

    try:
        header = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"{file} has a damaged header.", got=str(error)[:200], expected="JSON", mend=AGAIN
        ) from None
    if not isinstance(header, dict):
        raise LoadError(
            f"{file} has a damaged header.", got=type(header).__name__, expected="a JSON object", mend=AGAIN
        )
    return header


def _info(file: Path, name: str, entry: Any, begin: int) -> TensorInfo:
    def refuse(got: object, expected: str) -> LoadError:
        return LoadError(
            f"{file} describes its tensor {name!r} wrongly.", got=got, expected=expected, mend=AGAIN
        )

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse(repr(entry)[:200], "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(repr(dtype), "one of " + ", ".join(DTYPES))
    if not _sizes(shape) or len(shape) > 8:
        raise refuse(f"shape {shape!r}"[:200], "at most eight sizes of 0 or more")
    if not _sizes(offsets) or len(offsets) != 2:
        raise refuse(f"data_offsets {offsets!r}"[:200], "[begin, end]")
    nbytes = math.prod(shape) * DTYPES[dtype][1]
    if offsets[1] - offsets[0] != nbytes:
        raise refuse(f"{offsets[1] - offsets[0]:,} bytes", f"{nbytes:,} bytes for {dtype} {shape}")
    return TensorInfo(tuple(shape), DTYPES[dtype][0], file, begin + offsets[0], nbytes)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _check_extent(file: Path, size: int, begin: int, tensors: Mapping[str, TensorInfo]) -> None:
    """The data of all tensors follow each other without gap or overlap and end where the file ends."""
    end = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != end:
            raise LoadError(
                f"{file} leaves a gap or an overlap before its tensor {name!r}.",
                got=f"data at byte {info.start:,}",
                expected=f"data at byte {end:,}",
                mend=AGAIN,
            )
        end += info.nbytes
    if size != end:
        what = "is cut off: the download is incomplete" if size < end else "has bytes after its last tensor"
        raise LoadError(f"{file} {what}.", got=f"{size:,} bytes", expected=f"{end:,} bytes", mend=AGAIN)
