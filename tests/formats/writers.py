"""Weights re-written in the formats that people hold, and what each decodes to by its published formula.

A writer takes a component's tensors, writes a file of the given stem, and returns the float32 tensors that it stands
for. Matrices are quantised; what is small stays in bfloat16, as in published files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Writer = Callable[[Tensors, Path], Tensors]

FP8 = torch.float8_e4m3fn
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight")


def json_tensor(value: object) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def plain_fp8(tensors: Tensors, stem: Path) -> Tensors:
    stored = {n: t.to(FP8) if is_matrix(n, t) else t.bfloat16() for n, t in tensors.items()}
    save_file(stored, stem.with_suffix(".safetensors"))
    return {name: tensor.float() for name, tensor in stored.items()}


def scaled_fp8(tensors: Tensors, stem: Path, *, grain: str, leaf: str, prefix: str = "") -> Tensors:
    stored, dense = {}, {}
    for name, tensor in tensors.items():
        stored[name] = tensor.bfloat16()
        dense[name] = stored[name].float()
        if is_matrix(name, tensor):
            largest = {
                "tensor": lambda t: t.abs().max(),
                "row": lambda t: t.abs().amax(1, keepdim=True),
                "block": _largest_of_blocks,
            }[grain](tensor)
            scale = largest / 448
            spread = _spread(scale, tensor) if grain == "block" else scale
            layer = name.removesuffix("weight")
            stored[name], stored[layer + leaf] = (tensor / spread).to(FP8), scale.clone()
            dense[name] = stored[name].float() * spread
            if leaf == "scale_weight":
                stored[layer + "scale_input"] = torch.ones(1)
            elif grain == "tensor":
                stored[layer + "comfy_quant"] = json_tensor({"format": "float8_e4m3fn"})
    if leaf == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    save_file(
        {n if n == "scaled_fp8" else prefix + n: t for n, t in stored.items()},
        stem.with_suffix(".safetensors"),
    )
    return dense


def _largest_of_blocks(tensor: Tensor) -> Tensor:
    rows, columns = (range(0, size, 128) for size in tensor.shape)
    return torch.stack(
        [torch.stack([tensor[i : i + 128, j : j + 128].abs().max() for j in columns]) for i in rows]
    )


def _spread(scale: Tensor, tensor: Tensor) -> Tensor:
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return wide[: tensor.shape[0], : tensor.shape[1]]


# --- nf4 --------------------------------------------------------------------------------------------------------------


def nf4(tensors: Tensors, stem: Path, *, double: bool) -> Tensors:
    stored, dense = {}, {}
    for name, tensor in tensors.items():
        stored[name] = tensor.bfloat16()
        dense[name] = stored[name].float()
        if is_matrix(name, tensor) and tensor.numel() % 64 == 0:
            parts, dense[name] = _nf4(tensor, double)
            stored |= {name + part: t for part, t in parts.items()}
    save_file(stored, stem.with_suffix(".safetensors"))
    return dense


def _nf4(tensor: Tensor, double: bool) -> tuple[Tensors, Tensor]:
    blocks = tensor.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(tensor.shape)}
    parts: Tensors = {".quant_map": NF4.clone()}
    if double:
        values, offset = torch.linspace(-1, 1, 256), float(absmax.mean())
        groups = -(-absmax.numel() // 256)
        coarse = torch.stack([part.sub(offset).abs().max() for part in absmax.split(256)])
        spread = coarse.repeat_interleave(256)[: absmax.numel()]
        numbers = ((absmax - offset) / spread)[:, None].sub(values).abs().argmin(1)
        assert coarse.numel() == groups
        parts |= {".absmax": numbers.to(torch.uint8), ".nested_absmax": coarse, ".nested_quant_map": values}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        absmax = values[numbers] * spread + offset
    else:
        parts[".absmax"] = absmax
    indices = (blocks / absmax[:, None])[..., None].sub(NF4).abs().argmin(-1)
    flat = indices.flatten().to(torch.uint8)
    parts |= {
        "": (flat[::2] << 4 | flat[1::2])[:, None],
        ".quant_state.bitsandbytes__nf4": json_tensor(state),
    }
    return parts, (NF4[indices] * absmax[:, None]).reshape(tensor.shape)


# --- GGUF -------------------------------------------------------------------------------------------------------------

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12, "BF16": 30}


def gguf(tensors: Tensors, stem: Path, *, kind: str, prefix: str = "") -> Tensors:
    records: dict[str, tuple[list[int], str, bytes]] = {}
    dense, metadata = {}, {}
    for name, tensor in tensors.items():
        sizes, own, label = list(reversed(tensor.shape)), "F32", prefix + name
        data, dense[name] = tensor.float().numpy().tobytes(), tensor.float()
        if is_matrix(name, tensor):
            per_block, quantise = {"Q8_0": (32, q8_0), "Q4_K": (256, q4_k)}[kind]
            if tensor.numel() % per_block == 0:
                if (
                    tensor.shape[1] % per_block
                ):  # as ComfyUI-GGUF's converter: other rows, and the shape beside
                    metadata[f"comfy.gguf.orig_shape.{label}"] = list(tensor.shape)
                    sizes = [per_block, tensor.numel() // per_block]
                data, values = quantise(tensor.reshape(-1, per_block))
                own, dense[name] = kind, values.reshape(tensor.shape)
        elif name.endswith("bias"):
            data, dense[name], own = (*_bfloat(tensor), "BF16")
        records[label] = (sizes, own, data)
    write_gguf(stem.with_suffix(".gguf"), records, metadata)
    return dense


def _bfloat(tensor: Tensor) -> tuple[bytes, Tensor]:
    narrow = tensor.bfloat16()
    return narrow.view(torch.int16).numpy().tobytes(), narrow.float()


def q8_0(blocks: Tensor) -> tuple[bytes, Tensor]:
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    numbers = (blocks / scale.float()).round().clamp(-127, 127).to(torch.int8)
    data = torch.cat((scale.view(torch.uint8), numbers.view(torch.uint8)), dim=1)
    return data.numpy().tobytes(), numbers.float() * scale.float()


def q4_k(blocks: Tensor) -> tuple[bytes, Tensor]:
    """Scales below 16 only, so that their packing is plain: the low nibbles of four bytes and of four more."""
    runs = blocks.reshape(-1, 8, 32)
    low, high = runs.amin(2).clamp(max=0), runs.amax(2)
    d = ((high - low).amax(1, keepdim=True) / 15 / 15).half()
    m = (low.abs().amax(1, keepdim=True) / 15).clamp(min=1e-4).half()
    scale = ((high - low) / 15 / d.float()).round().clamp(1, 15)
    offset = (-low / m.float()).round().clamp(0, 15)
    step, least = (d.float() * scale)[..., None], (m.float() * offset)[..., None]
    numbers = ((runs + least) / step).round().clamp(0, 15).to(torch.uint8)
    s, o = scale.to(torch.uint8), offset.to(torch.uint8)
    packed = torch.cat((s[:, :4], o[:, :4], s[:, 4:] | o[:, 4:] << 4), dim=1)
    pairs = numbers.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)
    data = torch.cat((d.view(torch.uint8), m.view(torch.uint8), packed, nibbles), dim=1)
    return data.numpy().tobytes(), step * numbers.float() - least


def write_gguf(
    file: Path,
    records: Mapping[str, tuple[list[int], str | int, bytes]],
    metadata: Mapping[str, object] = {},
    *,
    version: int = 3,
    architecture: str | None = "qwen_image",
) -> None:
    entries = dict(metadata) | ({"general.architecture": architecture} if architecture else {})
    head = b"GGUF" + struct.pack("<IQQ", version, len(records), len(entries))
    for key, value in entries.items():
        head += _text(key)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + _text(value)
        else:
            assert isinstance(value, list)
            head += struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    data = b""
    for name, (sizes, kind, content) in records.items():
        number = TYPES[kind] if isinstance(kind, str) else kind
        head += _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, len(data))
        data += content + bytes(-len(content) % 32)
    file.write_bytes(head + bytes(-len(head) % 32) + data)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


COMFY = "model.diffusion_model."
FORMATS: Mapping[str, Writer] = {
    "plain fp8": plain_fp8,
    "scaled fp8, ComfyUI": partial(scaled_fp8, grain="tensor", leaf="scale_weight", prefix=COMFY),
    "scaled fp8, comfy_quant": partial(scaled_fp8, grain="tensor", leaf="weight_scale"),
    "scaled fp8, rows": partial(scaled_fp8, grain="row", leaf="weight_scale"),
    "scaled fp8, blocks": partial(scaled_fp8, grain="block", leaf="weight_scale_inv"),
    "GGUF Q8_0": partial(gguf, kind="Q8_0"),
    "GGUF Q4_K": partial(gguf, kind="Q4_K", prefix=COMFY),
    "nf4": partial(nf4, double=False),
    "nf4, double": partial(nf4, double=True),
}
