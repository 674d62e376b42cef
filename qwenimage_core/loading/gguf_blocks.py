"""The block formats of GGUF decoded with torch, bit for bit as the gguf package does in numpy, and faster.

A tensor is a row of blocks of a fixed number of bytes; each holds 32 or 256 numbers and the scales that they share.
Layouts as published by ggml.

Shape legend: N blocks, B bytes of a block; then as said at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Decoder = Callable[[Tensor], Tensor]
BLOCKS = 4096  # decoded at a time


def dequantise(raw: Tensor, *, kind: str, nbytes: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor of `shape` in float32 from its bytes (flat, uint8) in blocks of `nbytes`; some blocks at a time, so that
    little is needed beside it."""
    blocks, decode = raw.view(-1, nbytes), DECODERS[kind]
    numbers = torch.empty(math.prod(shape), device=raw.device)
    per_block = numbers.numel() // max(len(blocks), 1)
    for some, part in zip(blocks.split(BLOCKS), numbers.split(BLOCKS * per_block), strict=True):
        part.copy_(decode(some).flatten())
    return numbers.view(shape)


def _half(bytes_NB: Tensor) -> Tensor:
    """Two bytes of each block as a float16 number, widened: (N, 1)."""
    return bytes_NB.contiguous().view(torch.float16).float()


def _nibbles(bytes_NB: Tensor, run: int) -> Tensor:
    """The low halves of `run` bytes, then their high halves, and so on: (N, 2 B)."""
    runs = bytes_NB.reshape(bytes_NB.shape[0], -1, 1, run)
    return torch.cat((runs & 15, runs >> 4), dim=2).flatten(1)


def _bits(bytes_NB: Tensor) -> Tensor:
    """The bits of 32 numbers in 4 bytes, the first in the lowest: (N, 8 B)."""
    shifts = torch.arange(8, device=bytes_NB.device, dtype=torch.uint8)
    return (bytes_NB[..., None] >> shifts & 1).flatten(1)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks[:, :2]))


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:], 16).float().sub_(8).mul_(_half(blocks[:, :2]))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:], 16).float().mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4
    return numbers.float().sub_(16).mul_(_half(blocks[:, :2]))


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4
    return numbers.float().mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _scales_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of the eight runs of 32 numbers in a block of Q4_K or Q5_K, as float32: (N, 8, 1) each.

    Twelve bytes hold eight six-bit scales and eight six-bit offsets: the first four of each in the low six bits of
    bytes 0-3 and 4-7, whose top bits are also those of the last four, with the halves of bytes 8-11.
    """
    low, middle, high = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat((low & 63, (high & 15) | (low >> 2 & 48)), dim=1)
    offsets = torch.cat((middle & 63, (high >> 4) | (middle >> 2 & 48)), dim=1)
    return (
        (_half(blocks[:, :2]) * scales.float())[..., None],
        (_half(blocks[:, 2:4]) * offsets.float())[..., None],
    )


def _q4_k(blocks: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(blocks.contiguous())
    return _nibbles(blocks[:, 16:], 32).view(-1, 8, 32).float().mul_(scales).sub_(offsets)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(blocks.contiguous())
    shifts = torch.arange(8, device=blocks.device, dtype=torch.uint8)[:, None]
    fifth = blocks[:, None, 16:48] >> shifts & 1  # (N, 8, 32)
    numbers = _nibbles(blocks[:, 48:], 32).view(-1, 8, 32) | fifth << 4
    return numbers.float().mul_(scales).sub_(offsets)


def _q6_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(0, 8, 2, device=blocks.device, dtype=torch.uint8)[:, None]
    top = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).view(-1, 16, 16)
    numbers = (_nibbles(blocks[:, :128], 64).view(-1, 16, 16) | top << 4).float().sub_(32)
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].contiguous().view(torch.int8).float()  # (N, 16)
    return numbers.mul_(scales[..., None])


def _two_bits(bytes_NB: Tensor) -> Tensor:
    """Of each run of 32 bytes the lowest two bits, then the next two, and so on, in runs of 16: (N, 16, 16)."""
    shifts = torch.arange(0, 8, 2, device=bytes_NB.device, dtype=torch.uint8)[:, None]
    return (bytes_NB.reshape(bytes_NB.shape[0], -1, 1, 32) >> shifts & 3).view(-1, 16, 16)


def _q2_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks[:, 80:82]) * (blocks[:, :16] & 15).float()  # (N, 16)
    offsets = _half(blocks[:, 82:]) * (blocks[:, :16] >> 4).float()
    return _two_bits(blocks[:, 16:80]).float().mul_(scales[..., None]).sub_(offsets[..., None])


def _q3_k(blocks: Tensor) -> Tensor:
    """Six-bit scales: the low halves of 8 bytes, then their high halves; their top two bits in 4 bytes more."""
    low = _nibbles(blocks[:, 96:104], 8)
    shifts = torch.arange(0, 8, 2, device=blocks.device, dtype=torch.uint8)[:, None]
    top = (blocks[:, None, 104:108] >> shifts & 3).flatten(1)
    scales = _half(blocks[:, 108:]) * (low | top << 4).float().sub_(32)  # (N, 16)
    places = torch.arange(8, device=blocks.device, dtype=torch.uint8)[:, None]
    third = (blocks[:, None, :32] >> places & 1).view(-1, 16, 16)  # a number is 4 less where it is 0
    numbers = (_two_bits(blocks[:, 32:96]) | third << 2).float().sub_(4)
    return numbers.mul_(scales[..., None])


DECODERS: Mapping[str, Decoder] = {
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q5_1": _q5_1,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q4_1": _q4_1,
    "Q4_0": _q4_0,
    "Q3_K": _q3_k,
    "Q2_K": _q2_k,
}
