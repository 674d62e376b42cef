"""Every block format decodes to the bits that the reference packages give (reference.safetensors holds theirs)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.float8 import dequantise as scaled
from qwenimage_core.loading.gguf_blocks import DECODERS, dequantise

REFERENCE = Path(__file__).with_name("reference.safetensors")
FOUR_BITS = [f"{k}-{n}-{b}.weight" for k in ("nf4", "fp4") for n in ("single", "double") for b in (64, 128)]


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE)


@pytest.mark.parametrize("kind", DECODERS)
def test_gguf_blocks(reference: dict[str, torch.Tensor], kind: str) -> None:
    raw, values = reference[f"{kind}.raw"], reference[f"{kind}.values"]
    width = raw.numel() * (256 if "K" in kind else 32) // values.numel()
    found = dequantise(raw.flatten(), kind=kind, nbytes=width, shape=tuple(values.shape))
    assert torch.equal(found, values)


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bits(reference: dict[str, torch.Tensor], name: str) -> None:
    checkpoint = Checkpoint.open(REFERENCE)
    info = checkpoint.tensors[name]
    found, expected = checkpoint.read(name), reference[f"{name}.values"]
    assert info.shape == expected.shape and info.stored_as == name[:3]
    # bitsandbytes may multiply and add the scales of scales in one rounding: two units in the last place
    assert torch.allclose(found, expected, rtol=3e-7, atol=0)
    if "single" in name:
        assert torch.equal(found, expected)


def test_eight_bit_floats_with_a_scale_for_tensor_rows_and_blocks() -> None:
    weight = torch.randn(300, 260).to(torch.float8_e4m3fn)
    wide = weight.float()
    assert torch.equal(scaled(weight, torch.tensor(0.3)), wide * torch.tensor(0.3))
    rows = torch.rand(300)
    assert torch.equal(scaled(weight, rows), wide * rows[:, None])
    assert torch.equal(scaled(weight, rows[:, None]), wide * rows[:, None])
    blocks = torch.rand(3, 3)
    expected = torch.empty_like(wide)
    for i in range(300):
        for j in (0, 127, 128, 255, 256, 259):
            expected[i, j] = wide[i, j] * blocks[i // 128, j // 128]
    columns = [0, 127, 128, 255, 256, 259]
    assert torch.equal(scaled(weight, blocks)[:, columns], expected[:, columns])
