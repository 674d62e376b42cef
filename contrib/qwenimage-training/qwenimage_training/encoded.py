"""Encoded samples, and the transformer's velocity for a batch of them at any noise level, with gradients.

Samples that differ in their text alone go through the transformer together: texts are padded at the end, and nobody
attends to the padding. All others go one by one, so a batch is always exactly the mean of its samples.

B samples, N noise tokens, M appended tokens, C packed channels, L text tokens, S joint tokens, H heads, D channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from qwenimage_core.inputs import Inputs, encode
from qwenimage_core.velocity import BoundBranch, modulation_options

if TYPE_CHECKING:
    from qwenimage_core.models.transformer import QwenImageTransformer
    from qwenimage_training.sample import Sample


@dataclass(frozen=True, eq=False)
class Encoded:
    """A sample with what the encoders made of it: the target's latents in float32, and the conditions."""

    sample: Sample
    target_1NC: torch.Tensor
    inputs: Inputs


def encode_sample(sample: Sample, *, dtype: torch.dtype, device: torch.device) -> Encoded:
    """Run the encoders. Frozen ones build no graph; those being trained get their gradients through it."""
    plan = sample.plan
    inputs = encode(plan, dtype=dtype, device=device)
    # a target of several pictures (layers) is one run of noise tokens, picture after picture
    target = [plan.ctx.encode_picture(picture).value for picture in sample.target]
    return Encoded(sample, torch.cat(target, dim=1).to(device).float(), inputs)


class VelocityModel:
    """The velocities of encoded samples."""

    def __init__(self, transformer: QwenImageTransformer, *, checkpointing: bool, offload: bool) -> None:
        self.transformer, self.checkpointing, self.offload = transformer, checkpointing, offload

    def __call__(
        self, batch: Sequence[Encoded], x_1NC: Sequence[torch.Tensor], sigmas: Sequence[float], step: int = 0
    ) -> list[torch.Tensor]:
        """Velocity (1, N, C), float32, of each sample at its own latents and noise level. `step` is the step of the
        plan that this is, for plugins that act in some steps only."""
        found: list[torch.Tensor | None] = [None] * len(batch)
        kept = torch.autograd.graph.save_on_cpu() if self.offload else nullcontext()
        with kept:
            for members in alike(batch):
                v_BNC = self._together(
                    [batch[i] for i in members],
                    torch.cat([x_1NC[i] for i in members]),
                    [sigmas[i] for i in members],
                    step,
                )
                for place, i in enumerate(members):
                    found[i] = v_BNC[place : place + 1].float()
        return [v for v in found if v is not None]

    def _together(
        self, group: Sequence[Encoded], x_BNC: torch.Tensor, sigmas: Sequence[float], step: int
    ) -> torch.Tensor:
        branches = [self._bind(encoded) for encoded in group]
        times_B = torch.tensor([1000 * sigma for sigma in sigmas])
        modulation = self.transformer.modulation(
            times_B, *modulation_options(self.transformer, group[0].sample.plan)
        )
        bound = branches[0] if len(branches) == 1 else stacked(branches)
        return bound.velocity(x_BNC, step, modulation, checkpointing=self.checkpointing)

    def _bind(self, encoded: Encoded) -> BoundBranch:
        plan, inputs = encoded.sample.plan, encoded.inputs
        return BoundBranch(self.transformer, plan, plan.positive, inputs, inputs.texts[0])


def alike(batch: Sequence[Encoded]) -> list[list[int]]:
    """Places of the samples that can go together, group by group."""
    groups: dict[Hashable, list[int]] = {}
    for i, encoded in enumerate(batch):
        groups.setdefault(_likeness(encoded, i), []).append(i)
    return list(groups.values())


def _likeness(encoded: Encoded, place: int) -> Hashable:
    """Equal for samples whose layouts differ in the length of the prompt only. Samples with rules or residuals, which
    belong to one sample each, are like no other."""
    plan = encoded.sample.plan
    branch = plan.positive
    if branch.rules or branch.residuals or len(branch.text) > 1:
        return place
    return branch.layout.rule, branch.layout.images, plan.options


def stacked(branches: Sequence[BoundBranch]) -> BoundBranch:
    """One bound branch for several that are alike: the longest, with the others' texts padded to it."""
    longest = max(branches, key=lambda b: b.text_BLD.shape[1])
    lengths = [b.text_BLD.shape[1] for b in branches]
    L = max(lengths)
    whole = copy(longest)
    whole.text_BLD = torch.cat([F.pad(b.text_BLD, (0, 0, 0, L - b.text_BLD.shape[1])) for b in branches])
    whole.batch = len(branches)
    if longest.images_BMC is not None:
        whole.images_BMC = torch.cat([b.images_BMC for b in branches if b.images_BMC is not None])
    if min(lengths) < L:
        seen_BS = torch.ones(len(branches), len(longest.rope), dtype=torch.bool, device=whole.text_BLD.device)
        for row, length in zip(seen_BS, lengths, strict=True):
            row[length:L] = False
        whole.attend = KeyMask(seen_BS[:, None, None])
    return whole


@dataclass(frozen=True, eq=False)
class KeyMask:
    """Attention that leaves out padded keys; `seen_B11S` is true for the others."""

    seen_B11S: torch.Tensor

    def __call__(self, q_BHQD: torch.Tensor, k_BHSD: torch.Tensor, v_BHSD: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q_BHQD, k_BHSD, v_BHSD, attn_mask=self.seen_B11S)
