"""One GGUF file: its header checked before anything is read, and its tensors in their published names and shapes.

Format (versions 2 and 3, little-endian): "GGUF", version, number of tensors, number of metadata entries, the entries
(key, type, value), one record a tensor (name, sizes from the innermost, type, offset), padding, the data.

Files of the transformer are written by ComfyUI-GGUF's converter: general.architecture is "qwen_image", names are the
published ones. Files of the text encoder are written by llama.cpp's: "qwen2vl", with names of its own, and without the
vision tower ("clip", in a file beside it that splits its tensors). Rows of queries and keys are in the published order:
llama.cpp reorders them for "llama" only.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.encoding import Encoding
from qwenimage_core.loading.safetensors_file import AGAIN, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURES = {"qwen_image": "the transformer of Qwen-Image", "qwen2vl": "its text encoder"}
HEADER_LIMIT = 16 * 2**20
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

LLAMA_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LLAMA_LAYERS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# number in the file -> (torch name, bytes of one value)
PLAIN: Mapping[int, tuple[str, int]] = {0: ("float32", 4), 1: ("float16", 2), 30: ("bfloat16", 2)}
# number in the file -> (name, numbers of one block, bytes of one block)
BLOCKS: Mapping[int, tuple[str, int, int]] = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
# types of metadata values, by number: struct's letters; 8 is text and 9 an array
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass
class _Header:
    """Reads one value after the other from the beginning of a file."""

    file: Path
    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise LoadError(
                f"{self.file} is cut off inside its header.",
                got=f"{len(self.data):,} bytes",
                expected=f"{self.at + count:,} bytes or more",
                mend=AGAIN,
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize(letter)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int | None = None) -> Any:
        kind = self.number("I") if kind is None else kind
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item in _NUMBERS:
                size = struct.calcsize(_NUMBERS[item])
                return [v for (v,) in struct.iter_unpack("<" + _NUMBERS[item], self.take(count * size))]
            return [self.value(item) for _ in range(min(count, len(self.data)))]
        if kind not in _NUMBERS:
            raise LoadError(
                f"{self.file} has a damaged header.",
                got=f"a value of type {kind}",
                expected="0 to 12",
                mend=AGAIN,
            )
        return self.number(_NUMBERS[kind])


def read_gguf(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a GGUF file and its text metadata, after every check that needs no tensor data.

    Raises LoadError for a file that is no GGUF file, is cut off, contradicts itself, is of another model, or holds a
    type that is not known here.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = _Header(file, stream.read(min(size, HEADER_LIMIT)))
    if header.data[:4] != MAGIC:
        raise LoadError(
            f"{file} is no GGUF file.",
            got=f"{size:,} bytes that begin with {header.data[:4]!r}",
            expected=repr(MAGIC),
            mend=AGAIN,
        )
    header.take(4)
    version = header.number("I")
    if version not in VERSIONS:
        raise LoadError(
            f"{file} is GGUF of a version that is not known here.",
            got=version,
            expected="2 or 3 (little-endian)",
        )
    tensor_count, entry_count = header.number("Q"), header.number("Q")
    metadata = {}
    for _ in range(entry_count):
        key = header.text()
        metadata[key] = header.value()
    _check_model(file, metadata)
    records = [_record(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise LoadError(f"{file} has a damaged header.", got=f"alignment {alignment}", mend=AGAIN)
    begin = -(-header.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, sizes, kind, offset in records:
        if name in tensors:
            raise LoadError(f"{file} names something twice.", got=name, mend=AGAIN)
        shape = _shape(sizes, metadata.get(ORIGINAL_SHAPE + name))
        tensors[name] = _info(file, name, shape, sizes[0] if sizes else 1, kind, begin + offset)
    end, last = max(((i.start + i.nbytes, n) for n, i in tensors.items()), default=(begin, ""))
    if end > size:
        raise LoadError(
            f"{file} is cut off: the download is incomplete.",
            got=f"{size:,} bytes",
            expected=f"{end:,} bytes, to the end of {last!r}",
            mend=AGAIN,
        )
    _check_apart(file, tensors)
    return tensors, {key: value for key, value in metadata.items() if isinstance(value, str)}


def _record(header: _Header) -> tuple[str, list[int], int, int]:
    name, dimensions = header.text(), header.number("I")
    if dimensions > 8:
        raise LoadError(
            f"{header.file} describes its tensor {name!r} wrongly.",
            got=f"{dimensions} dimensions",
            mend=AGAIN,
        )
    return name, [header.number("Q") for _ in range(dimensions)], header.number("I"), header.number("Q")


def _shape(sizes: list[int], original: Any) -> tuple[int, ...]:
    """The published shape: sizes are written from the innermost, and some tensors were reshaped to fit blocks."""
    shape = tuple(reversed(sizes))
    if isinstance(original, list) and math.prod(original) == math.prod(shape):
        return tuple(original)
    return shape


def _info(file: Path, name: str, shape: tuple[int, ...], row: int, kind: int, start: int) -> TensorInfo:
    """`row` is the innermost size as written: rows are whole blocks."""
    count = math.prod(shape)
    if kind in PLAIN:
        dtype, width = PLAIN[kind]
        return TensorInfo(shape, dtype, file, start, count * width)
    if kind not in BLOCKS:
        known = ", ".join([*(dtype for dtype, _ in PLAIN.values()), *(block[0] for block in BLOCKS.values())])
        raise LoadError(
            f"{file} holds numbers of a type that is not known here.",
            got=f"GGUF type {kind} in {name}",
            expected=known,
            mend="take a file in another quantisation, as Q8_0 or Q4_K_M",
        )
    label, numbers, width = BLOCKS[kind]
    if row % numbers:
        raise LoadError(
            f"{file} describes its tensor {name!r} wrongly.",
            got=f"{list(shape)} in {label}, rows of {row:,}",
            expected=f"rows of whole blocks of {numbers} numbers",
            mend=AGAIN,
        )
    nbytes = count // numbers * width
    raw = TensorInfo((nbytes,), "uint8", file, start, nbytes)
    decode = partial(_decode, kind=label, nbytes=width, shape=shape)
    return TensorInfo(shape, "float32", file, start, nbytes, Encoding(f"GGUF {label}", (raw,), decode))


def _decode(raw: Tensor, *, kind: str, nbytes: int, shape: tuple[int, ...]) -> Tensor:
    from qwenimage_core.loading.gguf_blocks import dequantise

    return dequantise(raw, kind=kind, nbytes=nbytes, shape=shape)


def _check_model(file: Path, metadata: Mapping[str, Any]) -> None:
    told = metadata.get("general.architecture")
    if told in ARCHITECTURES:
        return
    vision = "leave it out where prompts have no pictures, or take the whole text encoder as safetensors"
    raise LoadError(
        f"{file} is GGUF of another model.",
        got=f"general.architecture {told!r}" + (" (mmproj: a vision tower alone)" if told == "clip" else ""),
        expected=", ".join(f"{name!r}: {what}" for name, what in ARCHITECTURES.items()),
        mend=vision if told == "clip" else None,
    )


def llama_name(name: str) -> str | None:
    """The published name of a text encoder's tensor that llama.cpp has named; None for any other name."""
    if name in LLAMA_NAMES:
        return LLAMA_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in LLAMA_LAYERS:
        return None
    return f"model.layers.{match[1]}.{LLAMA_LAYERS[match[2]]}.{match[3]}"


def _check_apart(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """No tensor begins before the one in front of it ends."""
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start < end:
            raise LoadError(
                f"{file} has an overlap before its tensor {name!r}.",
                got=f"data at byte {info.start:,}",
                expected=f"data at byte {end:,} or later",
                mend=AGAIN,
            )
        end = info.start + info.nbytes
