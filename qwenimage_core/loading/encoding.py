"""How stored bytes become a tensor, where they are not its values: scaled eight-bit floats, and blocks of four to eight
bits with scales of their own.

A checkpoint shows *logical* tensors: name, shape, and the dtype that decoding gives. An `Encoding` knows the parts that
are in the file and the function that decodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qwenimage_core.loading.safetensors_file import TensorInfo

Decode = Callable[..., "Tensor"]


@dataclass(frozen=True)
class Encoding:
    """`name` is what users call it ("fp8 scaled", "GGUF Q4_K", "nf4"). `decode` takes the parts in their order, all on
    one device, and returns a float32 tensor of the logical shape there, in memory of its own."""

    name: str
    parts: tuple[TensorInfo, ...]
    decode: Decode


@dataclass(frozen=True)
class Stored:
    """One tensor in memory as its file has it, for weights that wait."""

    parts: tuple[Tensor, ...]
    decode: Decode

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def device(self) -> Any:
        return self.parts[0].device

    def to(self, device: torch.device | str) -> Stored:
        return Stored(tuple(part.to(device) for part in self.parts), self.decode)

    def tensor(self, device: torch.device | str) -> Tensor:
        """Decoded where it is needed, so that few bytes travel."""
        return self.decode(*self.to(device).parts)
