"""What a run will need, stage by stage, before anything is loaded: weights by component and the work beside them.

A transformer block holds some 20 token-wide tensors (streams, projections, the feed-forward's fourfold width); the last
stage of the decoder some six pictures of its width in feature maps. Measured within a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenimage_core.memory.budget import blocks_that_fit

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.plan import Plan

TENSORS_A_TOKEN, MAPS_A_PIXEL = 20, 6


@dataclass(frozen=True)
class Share:
    """A component in a stage: bytes on the device, of which the buffers of its stream, and how many blocks stay."""

    component: str
    nbytes: int
    buffers: int = 0
    blocks: int = 0
    of_blocks: int = 0


@dataclass(frozen=True)
class Stage:
    """`working` is what is needed beside weights."""

    name: str
    shares: tuple[Share, ...]
    working: int

    @property
    def nbytes(self) -> int:
        return self.working + sum(share.nbytes for share in self.shares)


def stages(plans: Sequence[Plan], components: Mapping[str, Sequence[Component]]) -> tuple[Stage, ...]:
    """Encoding, denoising, decoding. Raises MemoryLimitError where a component's limit cannot be kept."""
    vae, transformer = components["vae"][0], components["transformer"][0]
    picture = max(decoding_bytes(plan, vae.itemsize) for plan in plans)
    step = max(denoising_bytes(plan, transformer.itemsize) for plan in plans)
    named = [
        (name + (f"/{i}" if len(several) > 1 else ""), c)
        for name, several in components.items()
        for i, c in enumerate(several)
    ]
    encoding = [(name, c) for name, c in named if not c.spec.denoises]
    denoising = [(name, c) for name, c in named if c.spec.denoises]
    found = []
    for title, acting, working in (
        ("encode", encoding, picture),
        ("denoise", denoising, step),
        ("decode", [("vae", vae)], picture),
    ):
        there = [name for name, _ in acting]
        # one after the other where they leave, together where they stay
        shares = [_share(name, c, working) for name, c in acting]
        staying = [_share(name, c, 0) for name, c in named if name not in there and not c.placement.leaves]
        leaving = [s for s, (_, c) in zip(shares, acting, strict=True) if c.placement.leaves]
        if title == "encode" and leaving:
            largest = max(leaving, key=lambda share: share.nbytes)
            shares = [s for s in shares if s not in leaving or s is largest]
        found.append(Stage(title, (*shares, *staying), working))
    return tuple(found)


def expected_peak(plans: Sequence[Plan], components: Mapping[str, Sequence[Component]]) -> int:
    """Of the largest stage."""
    return max(stage.nbytes for stage in stages(plans, components))


def _share(name: str, component: Component, working: int) -> Share:
    blocks, place = component.blocks, component.placement
    assert place.preparing.dtype is not None
    stay = len(blocks.units)
    if place.limit is not None:
        stay = blocks_that_fit(component, place.limit - component.base_bytes - working, place.limit)
    kept = sum(unit.nbytes(place.preparing.dtype) for unit in blocks.units[:stay])
    moving = stay < len(blocks.units) or place.preparing != place.computation
    buffers = blocks.buffer_bytes() if moving else 0
    return Share(name, component.base_bytes + kept + buffers, buffers, stay, len(blocks.units))


def denoising_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of a step."""
    tokens = max(branch.layout.tokens for branch in plan.branches) * len(plan.seeds)
    return TENSORS_A_TOKEN * tokens * plan.backbone.token_width * itemsize


def decoding_bytes(plan: Plan, itemsize: int) -> int:
    """Working memory of the VAE for one picture, or for one tile of it."""
    request = plan.request
    pixels = request.height * request.width
    if request.tiled:
        side = request.tile_size * plan.backbone.vae_scale
        pixels = min(pixels, side * side)
    return MAPS_A_PIXEL * pixels * plan.backbone.vae_width * itemsize
