"""What a Lightning file says of itself: by its name, by the metadata in it, and by its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwenimage_core.errors import RequestError
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.sources import locate

if TYPE_CHECKING:
    from qwenimage_core import ModelConfig

PUBLISHED_STEPS = (4, 8)

# The base a file was distilled from, by what its name holds; the first that fits.
FAMILIES = {
    "Qwen-Image-Edit-2511": r"edit[-_ ]?(plus[-_ ]?)?2511",
    "Qwen-Image-Edit-2509": r"edit[-_ ]?(plus[-_ ]?)?2509",
    "Qwen-Image-Edit": r"edit",
    "Qwen-Image-2512": r"2512",
    "Qwen-Image": r"qwen[-_ ]?image",
}
_STEPS = re.compile(r"(?<!\d)(\d+)[-_ ]?steps?", re.IGNORECASE)
_FP8_BASE = re.compile(r"fp8[-_ ]e4m3fn[-_ ]lightning", re.IGNORECASE)
_LORA = re.compile(r"lora|\.alpha$")
_BLOCK = re.compile(r"transformer_blocks[._](\d+)[._]")
_DOWN = re.compile(r"attn[._]to_q.*lora(_down|_A|\.down)")


@dataclass(frozen=True)
class LightningFile:
    """A Lightning LoRA. `steps` and `family` are None where neither name nor metadata tell them."""

    path: Path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.path)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Where it may speak of itself, the most certain first."""
        return (self.path.name, *self.checkpoint.metadata.values(), self.path.parent.name)

    @property
    def steps(self) -> int | None:
        return steps_in(self.texts)

    @property
    def family(self) -> str | None:
        return family_in(self.texts)

    @property
    def for_fp8_base(self) -> bool:
        """Distilled on weights that were cast to float8 without scales."""
        return any(_FP8_BASE.search(text) for text in self.texts)

    @property
    def is_lora(self) -> bool:
        return any(_LORA.search(name) for name in self.checkpoint.shapes)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks it changes."""
        return max(
            (int(m[1]) + 1 for name in self.checkpoint.shapes if (m := _BLOCK.search(name))), default=0
        )

    @property
    def width(self) -> int | None:
        """Width of the transformer it is for."""
        return next((shape[1] for name, shape in self.checkpoint.shapes.items() if _DOWN.search(name)), None)


def steps_in(texts: Iterable[str]) -> int | None:
    """The first number of steps named."""
    return next((int(found[1]) for text in texts if (found := _STEPS.search(text))), None)


def family_in(texts: Iterable[str]) -> str | None:
    """The base that the first text that names one names."""
    for text in texts:
        for family, pattern in FAMILIES.items():
            if re.search(pattern, text, re.IGNORECASE):
                return family
    return None


def told_steps(lightning: ModelConfig | Literal[True]) -> int:
    """How many steps a file is for; the fewest published where nothing tells."""
    steps = None if lightning is True else LightningFile(lora_file(lightning)).steps
    return steps or PUBLISHED_STEPS[0]


def lora_file(config: ModelConfig) -> Path:
    """The one safetensors file of a ModelConfig, downloaded where needed."""
    found = locate(config)
    files = [f for path in found for f in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    if len(files) != 1:
        raise RequestError(
            "lightning is not one file.",
            got=", ".join(f.name for f in files[:6]) or f"no safetensors file in {found[0]}",
            expected="one LoRA",
            mend="name the file, in a ModelConfig by its origin_file_pattern",
        )
    return files[0]
