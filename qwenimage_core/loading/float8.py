"""Eight-bit floats with scales beside them: weight = stored * scale, in float32.

Names in use: `X.scale_weight` (ComfyUI's first form, with a tensor `scaled_fp8` that marks the file), `X.weight_scale`
(compressed-tensors, modelopt, and ComfyUI's present form, with `X.comfy_quant`, JSON in bytes) and `X.weight_scale_inv`
(blocks of 128 x 128; despite its name it is a factor too). A scale is for the tensor, for each row, or for each block.
What only matters for activations in eight bits (`X.scale_input`, `X.input_scale`) is not used: weights are decoded.

Shape legend: O output and I input features of a layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.encoding import Encoding
from qwenimage_core.loading.safetensors_file import TensorInfo, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
MARKER = "scaled_fp8"
SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
UNUSED = ("scale_input", "input_scale", "comfy_quant")
FORMATS = ("float8_e4m3fn", "float8_e5m2")


def join_scales(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Weights with their scales as one tensor each. Raises LoadError for a weight in eight bits that has no scale while
    others have, and for scales that do not fit their weight."""
    scale_of = {
        f"{name.removesuffix(leaf)}weight": name
        for name in tensors
        for leaf in SCALES
        if name.endswith(f".{leaf}") and f"{name.removesuffix(leaf)}weight" in tensors
    }
    markers = [name for name in tensors if name == MARKER or name.endswith("." + MARKER)]
    if not scale_of and not markers:
        return dict(tensors)
    found = {name: info for name, info in tensors.items() if name not in {*scale_of.values(), *markers}}
    for name, info in tensors.items():
        if name in scale_of:
            _check_format(name.removesuffix("weight") + "comfy_quant", tensors)
            found[name] = _scaled(info, scale_of[name], tensors[scale_of[name]])
            for leaf in UNUSED:
                found.pop(name.removesuffix("weight") + leaf, None)
        elif info.dtype in FORMATS and len(info.shape) == 2 and name.endswith(".weight"):
            raise LoadError(
                f"{info.file} has no scale for its tensor {name!r}, but scaled weights beside it.",
                got=f"{info.dtype} without {' or '.join(SCALES)}",
                expected=f"{len(scale_of)} other weights have one",
                mend="download the file again, or convert the model again",
            )
    return found


def _scaled(info: TensorInfo, scale_name: str, scale: TensorInfo) -> TensorInfo:
    if not scale.dtype.startswith(("float", "bfloat")) or _grain(info.shape, scale.shape) is None:
        rows, columns = (-(-size // BLOCK) for size in (*info.shape, 1, 1)[:2])
        raise LoadError(
            f"{info.file}: the scale {scale_name!r} does not fit its weight.",
            got=f"{scale.dtype} {list(scale.shape)} for {list(info.shape)}",
            expected=f"one number, one a row [{info.shape[0] if info.shape else 1}, 1], "
            f"or one a block of {BLOCK} x {BLOCK} [{rows}, {columns}]",
        )
    return replace(
        info,
        dtype="float32",
        nbytes=info.nbytes + scale.nbytes,
        encoding=Encoding(f"scaled {info.dtype}", (info, scale), dequantise),
    )


def _grain(weight: tuple[int, ...], scale: tuple[int, ...]) -> str | None:
    """What one scale is for; None where the shapes do not fit."""
    if all(size == 1 for size in scale):
        return "tensor"
    if len(weight) == 2 and scale in ((weight[0],), (weight[0], 1)):
        return "row"
    if len(weight) == 2 and scale == tuple(-(-size // BLOCK) for size in weight):
        return "block"
    return None


def dequantise(weight_OI: Tensor, scale: Tensor) -> Tensor:
    """In float32, the product rounded once."""
    import torch

    wide_OI, factor = weight_OI.to(torch.float32, copy=True), scale.float()
    grain = _grain(tuple(weight_OI.shape), tuple(scale.shape))
    if grain == "block":
        for rows, factors in zip(wide_OI.split(BLOCK), factor, strict=True):  # little beside the weight
            rows.mul_(factors.repeat_interleave(BLOCK)[: rows.shape[1]])
        return wide_OI
    return wide_OI.mul_(factor.reshape(-1, 1) if grain == "row" else factor.reshape(()))


def _check_format(name: str, tensors: Mapping[str, TensorInfo]) -> None:
    """`X.comfy_quant` says how a weight is stored; other forms than scaled floats have other parts."""
    if name not in tensors:
        return
    info = tensors[name]
    try:
        told = json.loads(bytes(read_tensor(info).flatten().tolist()))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{info.file}: its tensor {name!r} is damaged.",
            got=repr(error)[:200],
            expected="JSON with a format",
        ) from None
    if told not in FORMATS:
        raise LoadError(
            f"{info.file} is in a format that is not known here.",
            got=f"{told!r} in {name}",
            expected=" or ".join(FORMATS),
            mend="take the file in bf16, scaled fp8, GGUF or nf4",
        )
