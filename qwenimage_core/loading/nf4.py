"""Four-bit weights as bitsandbytes stores them: each number is an index into sixteen values, times the largest
magnitude of its block. Decoding is a look-up and needs no package.

Parts of `X`: itself (uint8, two indices a byte, the first in the high half), `X.absmax`, `X.quant_map` (sixteen values)
and `X.quant_state.bitsandbytes__nf4` (or __fp4; JSON in bytes: shape, blocksize, dtype). With double quantisation the
absmax are indices too: `X.nested_quant_map` (256 values) times `X.nested_absmax` a block of 256, plus nested_offset.

Shape legend: N numbers of the weight, K of them in a block, M blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.encoding import Encoding
from qwenimage_core.loading.safetensors_file import AGAIN, TensorInfo, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

STATES = tuple(f".quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
BLOCKS = 2048  # half of those that are decoded at a time
NESTED = ("nested_absmax", "nested_quant_map")


def join_blocks(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Weights with all that decodes them as one tensor each. Raises LoadError where a part is missing or of another
    size than the weight's shape asks for. Reads the few bytes in which each weight's shape is written."""
    found = dict(tensors)
    for state_name, state_info in tensors.items():
        suffix = next((suffix for suffix in STATES if state_name.endswith(suffix)), None)
        if suffix is None:
            continue
        name = state_name.removesuffix(suffix)
        state = _state(state_name, state_info)
        leaves = ("absmax", "quant_map", *(NESTED if "nested_offset" in state else ()))
        needed = (name, *(f"{name}.{leaf}" for leaf in leaves))
        if missing := [part for part in needed if part not in tensors]:
            raise LoadError(
                f"{state_info.file} lacks parts of a four-bit weight.",
                got=f"no tensor {', '.join(missing)}",
                expected=f"{len(needed)} parts of {name}",
                mend=AGAIN,
            )
        parts = tuple(tensors[part] for part in needed)
        _check_sizes(name, parts, state)
        decode = partial(dequantise, shape=tuple(state["shape"]), block=state["blocksize"])
        if "nested_offset" in state:
            decode = partial(decode, nested=(state["nested_blocksize"], state["nested_offset"]))
        for part in (state_name, *needed):
            found.pop(part)
        found[name] = replace(
            parts[0],
            shape=tuple(state["shape"]),
            dtype="float32",
            nbytes=sum(part.nbytes for part in parts),
            encoding=Encoding(suffix.rpartition("__")[2], parts, decode),
        )
    return found


def dequantise(
    packed: Tensor,
    absmax_M: Tensor,
    values: Tensor,
    nested_absmax: Tensor | None = None,
    nested_values: Tensor | None = None,
    *,
    shape: tuple[int, ...],
    block: int,
    nested: tuple[int, float] | None = None,
) -> Tensor:
    """In float32, as bitsandbytes' own functions for the CPU."""
    import torch

    scale_M = absmax_M.float()
    if nested is not None and nested_absmax is not None and nested_values is not None:
        size, offset = nested
        coarse_M = nested_absmax.repeat_interleave(size)[: absmax_M.numel()]
        scale_M = nested_values[absmax_M.int()] * coarse_M + offset
    flat, numbers_N = packed.flatten(), torch.empty(math.prod(shape), device=packed.device)
    values = values.float()
    size = BLOCKS * 2 * block  # some blocks at a time, so that little is needed beside the numbers
    for start in range(0, numbers_N.numel(), size):
        part = numbers_N[start : start + size]
        bytes_ = flat[start // 2 : -(-(start + size) // 2)]
        indices = torch.stack((bytes_ >> 4, bytes_ & 15), dim=-1).flatten()[: part.numel()]
        scales = scale_M[start // block : (start + size) // block].repeat_interleave(block)
        torch.mul(values[indices.int()], scales[: part.numel()], out=part)  # the last block may be short
    return numbers_N.view(shape)


def _state(name: str, info: TensorInfo) -> dict[str, Any]:
    expected = "JSON with shape and blocksize"
    try:
        state = json.loads(bytes(read_tensor(info).flatten().tolist()))
        sizes = [state["blocksize"], *state["shape"]]
        if "nested_offset" in state:
            expected += ", nested_blocksize and nested_offset"
            sizes.append(state["nested_blocksize"])
            state["nested_offset"] = float(state["nested_offset"])
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"sizes {sizes}")
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{info.file}: its tensor {name!r} is damaged.",
            got=repr(error)[:200],
            expected=expected,
            mend=AGAIN,
        ) from None
    return state


def _check_sizes(name: str, parts: tuple[TensorInfo, ...], state: Mapping[str, Any]) -> None:
    count = math.prod(state["shape"])
    blocks = -(-count // state["blocksize"])
    wanted = [("uint8", -(-count // 2)), ("uint8" if len(parts) > 3 else "float32", blocks), ("float32", 16)]
    if len(parts) > 3:
        wanted += [("float32", -(-blocks // state["nested_blocksize"])), ("float32", 256)]
    for part, (dtype, size) in zip(parts, wanted, strict=True):
        if part.dtype != dtype or math.prod(part.shape) != size:
            raise LoadError(
                f"{part.file}: the parts of the four-bit weight {name!r} do not fit each other.",
                got=f"{part.dtype} of {math.prod(part.shape):,} numbers",
                expected=f"{dtype} of {size:,} for shape {state['shape']} in blocks of {state['blocksize']}",
                mend=AGAIN,
            )
