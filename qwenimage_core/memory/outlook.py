"""The memory that a model will need for a job in numbers, without a request, files or weights: `qwenimage memory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qwenimage_core.loading.placement import Placement
from qwenimage_core.memory.plan import Stage, stages_of
from qwenimage_core.memory.presets import Machine, choose
from qwenimage_core.memory.sizes import (
    Sizes,
    Work,
    largest,
    picture_bytes,
    prompt_bytes,
    row_bytes,
    step_bytes,
)

if TYPE_CHECKING:
    from qwenimage_core.loading.recognise import ComponentSpec
    from qwenimage_core.models.backbone import BackboneDescription

PROMPT_TOKENS = 256  # of a long prompt
SEEN_TOKENS = 200  # of a picture as the text encoder sees it (384 x 384 pixels)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request in numbers. `references` are pictures of the target's size beside it, `frames` those of a layered
    picture; `tile` is a tile's side in latent pixels."""

    height: int = 1328
    width: int = 1328
    steps: int = 40
    pictures: int = 1
    references: int = 0
    frames: int = 1
    tile: int | None = None

    def tokens(self, backbone: BackboneDescription) -> int:
        """Of one pass through the transformer."""
        grid = (self.height // backbone.size_multiple) * (self.width // backbone.size_multiple)
        return (self._text + grid * (self.frames + self.references)) * self.pictures

    def work(self, backbone: BackboneDescription, transformer: Sizes) -> Work:
        """What the stages need beside weights, counted as for a plan."""
        size = transformer.computes.itemsize
        decode = picture_bytes(backbone, self.height * self.width, self.tile, size)
        prompt = prompt_bytes(backbone, self._text, size)
        step = max(step_bytes(backbone, self.tokens(backbone), size), largest(transformer.once) * size)
        seen = self.references > 0
        table = row_bytes(backbone, size) * (self.steps + seen)
        return Work(max(prompt, decode if seen else 0), step + table, decode, seen)

    @property
    def _text(self) -> int:
        return PROMPT_TOKENS + SEEN_TOKENS * self.references


def published(specs: Sequence[ComponentSpec], computes: torch.dtype) -> dict[str, tuple[Sizes, Any]]:
    """Qwen-Image as it was published, in bfloat16: kind -> sizes and a module without values. `specs`: the core's."""
    from qwenimage_core.models.text_encoder import TextEncoder
    from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
    from qwenimage_core.models.vae import QwenImageVAE, VAEConfig

    with torch.device("meta"):
        modules: Mapping[str, Any] = {
            "transformer": QwenImageTransformer(TransformerConfig()),
            "text_encoder": TextEncoder(),
            "vae": QwenImageVAE(VAEConfig()),
        }
    return {
        spec.kind: (
            Sizes.of_module(
                spec.kind, spec, modules[spec.kind], computes, lambda leaf: leaf.nbytes(torch.bfloat16)
            ),
            modules[spec.kind],
        )
        for spec in specs
    }


def outlook(
    parts: Sequence[Sizes], work: Work, machine: Machine | None, device: str
) -> tuple[tuple[Stage, ...], dict[str, Placement]]:
    """Stages and placements; without a machine everything stays. Raises MemoryLimitError."""
    if machine is None:
        placements = {part.name: Placement.resident(device, part.computes) for part in parts}
    else:
        placements = choose(parts, work, machine)
    placed = [(part, placements[part.name]) for part in parts]
    return stages_of(placed, work, machine.used if machine else 0), placements
