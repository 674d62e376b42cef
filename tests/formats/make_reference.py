"""Write reference.safetensors: stored bytes and what the reference packages decode them to.

    pip install gguf==0.19.0 bitsandbytes==0.50.2
    python tests/formats/make_reference.py

GGUF: random weights quantised by the package where it can, else random blocks with finite scales. nf4 and fp4: random
weights quantised by bitsandbytes on the CPU, with single and double quantisation, in blocks of 64 and 128.
"""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # where scales are


def gguf_blocks(kind: str, draw: np.random.Generator) -> np.ndarray:
    quantisation = gguf.GGMLQuantizationType[kind]
    if kind not in HALVES:
        return quantize(draw.standard_normal((3, 256), dtype=np.float32), quantisation)
    blocks = draw.integers(0, 256, (12, gguf.GGML_QUANT_SIZES[quantisation][1]), dtype=np.uint8)
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = draw.uniform(-0.1, 0.1, (12, 1)).astype(np.float16).view(np.uint8)
    return blocks


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    draw = np.random.default_rng(0)
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *HALVES):
        blocks = gguf_blocks(kind, draw)
        values = dequantize(blocks, gguf.GGMLQuantizationType[kind])
        tensors[f"{kind}.raw"] = torch.from_numpy(blocks)
        tensors[f"{kind}.values"] = torch.from_numpy(values.reshape(-1, 256))
    torch.manual_seed(0)
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for block in (64, 128):
                # not whole blocks at the end; and more than 256 of them where the scales are in blocks too
                weight = torch.randn(99 if nested and block == 64 else 9, 184)
                packed, state = bnb.quantize_4bit(
                    weight, quant_type=kind, compress_statistics=nested, blocksize=block
                )
                name = f"{kind}-{'double' if nested else 'single'}-{block}.weight"
                tensors[name] = packed
                tensors |= {f"{name}.{part}": t for part, t in state.as_dict(packed=True).items()}
                tensors[f"{name}.values"] = bnb.dequantize_4bit(packed, state)
    metadata = {"made": json.dumps({"gguf": "0.19.0", "bitsandbytes": "0.50.2"})}
    save_file(tensors, Path(__file__).with_name("reference.safetensors"), metadata)


if __name__ == "__main__":
    main()
