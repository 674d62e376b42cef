"""How large a component is, and the work of a run beside it: numbers alone, so that a plan needs no weights.

Sizes of components are numbers of values, work is in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qwenimage_core.loading.reader import PIECE, SLOTS
from qwenimage_core.loading.units import Leaf, Unit, units

if TYPE_CHECKING:
    from torch import nn

    from qwenimage_core.loading.component import Component
    from qwenimage_core.loading.recognise import ComponentSpec
    from qwenimage_core.models.backbone import BackboneDescription
    from qwenimage_core.plan import Plan

TENSORS_A_TOKEN, MAPS_A_PIXEL = 20, 6
DECODING = 5  # bytes a number of the largest weight that is decoded: float32, and its scales
OVERHEAD = 64 * 2**20  # what a run takes beside weights and work: libraries, threads, what allocators keep
MODULATION = 12  # vectors of a block: shift, scale and gate, of both halves, of both streams


@dataclass(frozen=True)
class Sizes:
    """Of one component, in values: what is always there, its blocks one by one, what only some requests need (`later`),
    and the parts that a run uses once. In bytes: `in_file`, each block as its file has it (empty: as it computes),
    `staging`, the most that is on its way at a time of a weight not stored as it computes, and `decoding`, what
    decoding one takes."""

    name: str
    base: int
    blocks: tuple[int, ...] = ()
    later: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    denoises: bool = False
    computes: torch.dtype = torch.bfloat16
    in_file: tuple[int, ...] = ()
    staging: int = 0
    decoding: int = 0

    def resting(self, dtype: torch.dtype | None) -> list[int]:
        """Bytes of each block that waits in memory in a dtype; None: as its file has it."""
        if dtype is None and self.in_file:
            return list(self.in_file)
        return [count * (dtype or self.computes).itemsize for count in self.blocks]

    @property
    def kept(self) -> torch.dtype | None:
        """In which blocks wait for their turn: as stored where that takes less, for nothing is rounded then."""
        return None if sum(self.resting(None)) < sum(self.resting(self.computes)) else self.computes

    @property
    def whole(self) -> int:
        """Bytes of all that stays while it computes from memory, in the dtype of computation."""
        return (self.base + sum(self.blocks)) * self.computes.itemsize

    @property
    def buffers(self) -> int:
        """What a stream of its blocks needs beside those that stay: room for two units, and weights on their way."""
        if not self.blocks:
            return 0
        return largest(self.blocks) * self.computes.itemsize + SLOTS * self.staging + self.decoding

    @property
    def loading(self) -> int:
        """Bytes beside those that stay while it is read."""
        return self.staging + self.decoding

    def seen(self, streamed: bool) -> int:
        """Bytes of what only some requests need, kept like the rest or passing through buffers of its own."""
        return (largest(self.later) if streamed else sum(self.later)) * self.computes.itemsize

    @classmethod
    def of(cls, name: str, component: Component) -> Sizes:
        """Of a component, from its files' headers."""
        found = cls.of_module(
            name,
            component.spec,
            component.skeleton,
            component.dtype,
            lambda leaf: component.stored_bytes(leaf.name),
            lambda leaf: component.staging_bytes(leaf.name),
        )
        return replace(found, decoding=DECODING * component.largest_decoded)

    @classmethod
    def of_module(
        cls,
        name: str,
        spec: ComponentSpec,
        module: nn.Module,
        computes: torch.dtype,
        stored: Callable[[Leaf], int],
        staging: Callable[[Leaf], int] = lambda leaf: PIECE,
    ) -> Sizes:
        """Of a module on the meta device; `stored` says how many bytes the file has of a weight, `staging` how many are
        on their way at a time."""
        once = units(module, spec.once, computes)
        later = units(module, spec.later, computes)
        blocks = units(module, spec.blocks, computes, apart=(*once, *later))
        counts = _values(blocks), _values(later), _values(once)
        base = sum(tensor.numel() for tensor in module.state_dict().values()) - sum(map(sum, counts))
        in_file = tuple(sum(map(stored, unit.leaves)) for unit in blocks)
        leaves = [leaf for unit in (*once, *later, *blocks) for leaf in unit.leaves]
        cast = (staging(leaf) for leaf in leaves if stored(leaf) != leaf.nbytes(computes))
        return cls(name, base, *counts, spec.denoises, computes, in_file, max(cast, default=0))


@dataclass(frozen=True)
class Work:
    """Bytes that each stage needs beside weights. `pictures`: something is encoded by the VAE or seen by the text
    encoder. `kinds` are the components that take part; None for all.

    A transformer block holds some 20 token-wide tensors (streams, projections, the feed-forward's fourfold width); the
    last stage of the decoder some six pictures of its width in feature maps. Measured within a third.
    """

    encode: int
    denoise: int
    decode: int
    pictures: bool = False
    kinds: frozenset[str] | None = None

    def at(self, stage: str) -> int:
        found: int = getattr(self, stage)
        return found

    @classmethod
    def of(cls, plans: Sequence[Plan], components: Mapping[str, Sequence[Component]]) -> Work:
        """The most that any of the plans needs."""
        from qwenimage_core.loading.recognise import CORE_COMPONENTS

        vae, transformer = components["vae"][0], components["transformer"][0]
        pictures = any(plan.images or plan.start or plan.plugins for plan in plans)
        decode = max(decoding_bytes(plan, vae.itemsize) for plan in plans)
        step = max(denoising_bytes(plan, transformer.itemsize) for plan in plans)
        table = max(table_bytes(plan, transformer.itemsize) for plan in plans)
        once = [unit.nbytes(transformer.dtype) for unit in transformer.once.units]
        prompt = max(encoding_bytes(plan, components["text_encoder"][0].itemsize) for plan in plans)
        encode = max(prompt, decode if pictures else 0)
        brought = [spec for plan in plans for p in plan.plugins for spec in p.call("components") or ()]
        kinds = frozenset(spec.kind for spec in (*CORE_COMPONENTS, *brought))
        return cls(encode, max(step, largest(once)) + table, decode, pictures, kinds)


def encoding_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of the text encoder for the longest prompt."""
    tokens = max(branch.layout.tokens - _pictured(branch) for branch in plan.branches)
    return prompt_bytes(plan.backbone, tokens, itemsize)


def denoising_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of a step."""
    tokens = max(branch.layout.tokens for branch in plan.branches) * len(plan.seeds)
    return step_bytes(plan.backbone, tokens, itemsize)


def table_bytes(plan: Plan, itemsize: int) -> int:
    """The modulation of every step, and of time zero where it is needed."""
    rows = plan.steps + any(branch.layout.zero_slices for branch in plan.branches)
    return row_bytes(plan.backbone, itemsize) * rows


def decoding_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of the VAE for one picture, or for one tile of it and the sums of all tiles."""
    request = plan.request
    tile = request.tile_size if request.tiled else None
    return picture_bytes(plan.backbone, request.height * request.width, tile, itemsize)


# --- the same in numbers ---------------------------------------------------------------------------------------------


def prompt_bytes(backbone: BackboneDescription, tokens: int, itemsize: int) -> int:
    """Of the text encoder, for a prompt of so many tokens."""
    return TENSORS_A_TOKEN * tokens * backbone.text_width * itemsize


def step_bytes(backbone: BackboneDescription, tokens: int, itemsize: int) -> int:
    """Of the transformer, for so many tokens of all pictures."""
    return TENSORS_A_TOKEN * tokens * backbone.token_width * itemsize


def row_bytes(backbone: BackboneDescription, itemsize: int) -> int:
    """One step of the modulation table."""
    return MODULATION * backbone.blocks * backbone.token_width * itemsize


def picture_bytes(backbone: BackboneDescription, pixels: int, tile: int | None, itemsize: int) -> int:
    """Of the VAE; `tile` is a tile's side in latent pixels."""
    maps = MAPS_A_PIXEL * backbone.vae_width * itemsize
    if tile is None:
        return maps * pixels
    # float32: the sum, the sum of weights, and the quotient
    sums = 4 * (2 * backbone.image_channels + 1) * pixels
    return maps * min(pixels, (tile * backbone.vae_scale) ** 2) + sums


def _pictured(branch: Any) -> int:
    return sum(segment.tokens for segment in branch.layout.segments if segment.kind != "text")


def _values(parts: Sequence[Unit]) -> tuple[int, ...]:
    return tuple(sum(leaf.empty.numel() for leaf in part.leaves) for part in parts)


def largest(sizes: Sequence[int]) -> int:
    """What a stream's buffers hold: the largest unit and the next."""
    return sum(sorted(sizes)[-SLOTS:])
