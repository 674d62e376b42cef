"""From a plan to tensors: run the encoders once, draw the noise, and bind each branch to the transformer.

B pictures of one prompt, N noise tokens, M appended tokens, C packed channels, L text tokens, E text encoder width,
D transformer width, S joint tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qwenimage_core.attention import Attend, attention_for
from qwenimage_core.errors import RequestError
from qwenimage_core.latents import draw_noise, pack, redraw_mask
from qwenimage_core.models.rope import Rope, rope_tables
from qwenimage_core.plan import Branch, Plan
from qwenimage_core.registry import LoadedPlugin
from qwenimage_core.values import Residual

if TYPE_CHECKING:
    from qwenimage_core.models.modulation import StepModulation
    from qwenimage_core.models.transformer import QwenImageTransformer


@dataclass(frozen=True)
class Blend:
    """Keeps the unmasked part of a picture: there, the velocity is the one that lands on the picture exactly."""

    start_1NC: torch.Tensor
    redraw_1NC: torch.Tensor

    def __call__(self, x_BNC: torch.Tensor, v_BNC: torch.Tensor, sigma: float) -> torch.Tensor:
        keep_BNC = (x_BNC - self.start_1NC) / sigma
        return (1 - self.redraw_1NC) * keep_BNC + self.redraw_1NC * v_BNC


@dataclass(frozen=True)
class Inputs:
    """What the encoders gave: everything of a run but the transformer. The latents are float32, the rest `dtype`."""

    latents_BNC: torch.Tensor
    images_1MC: torch.Tensor | None
    texts: tuple[torch.Tensor, ...]  # (1, L, E), one a branch
    blend: Blend | None


def encode(plan: Plan, *, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Compute every `Tokens` of the plan; text encoder and VAE may be released afterwards."""
    texts = tuple(torch.cat([t.value for t in b.text], dim=1).to(device, dtype) for b in plan.branches)
    images = [t.value.to(device, dtype) for t in plan.images]
    for branch in plan.branches:
        for _, residual in branch.residuals:
            for tokens in residual.inputs:
                tokens.value  # noqa: B018  computed here, while its encoder is there, and kept
    latents_BNC, blend = start(plan, dtype, device)
    return Inputs(latents_BNC, torch.cat(images, dim=1) if images else None, texts, blend)


def start(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, Blend | None]:
    """Latents at the first noise level, and what holds the kept part of an inpainted picture."""
    request, patch = plan.request, plan.backbone.patch_size
    shape = (plan.target.frames, plan.backbone.latent_channels, plan.grid.height * patch, plan.grid.width * patch)
    noise_BFZhw = draw_noise(plan.seeds, shape, dtype=dtype, device=request.rand_device)
    noise_BNC = pack(noise_BFZhw, patch).to(device)
    if plan.start is None:
        return noise_BNC, None
    sigma, start_1NC = plan.sigmas[0], plan.start.value.to(device).float()
    latents_BNC = (1 - sigma) * start_1NC + sigma * noise_BNC
    if request.inpaint_mask is None:
        return latents_BNC, None
    mask_111hw = redraw_mask(
        request.inpaint_mask,
        *shape[2:],
        blur_size=request.inpaint_blur_size,
        blur_sigma=request.inpaint_blur_sigma,
    )
    redraw_1NC = pack(mask_111hw.expand(1, *shape), patch).to(device)
    return latents_BNC, Blend(start_1NC, redraw_1NC)


class BoundBranch:
    """One branch with the transformer: all that stays the same from step to step is computed here, once."""

    def __init__(
        self, transformer: QwenImageTransformer, plan: Plan, branch: Branch, inputs: Inputs, text_1LE: torch.Tensor
    ) -> None:
        device = inputs.latents_BNC.device
        self.transformer, self.branch = transformer, branch
        self.activation = plan.options.activation
        self.batch = len(plan.seeds)
        self.images_BMC = _repeat(inputs.images_1MC, self.batch)
        self.text_BLD = transformer.embed_text(text_1LE).expand(self.batch, -1, -1)
        self.rope = rope_for(branch, plan.backbone.rope_axes, device)
        self.attend: Attend | None = attention_for(branch.rules, branch.layout, device)
        self.zero_rows = branch.layout.zero_slices
        self.noise_tokens = plan.grid.tokens

    def velocity(self, x_BNC: torch.Tensor, step: int, modulation: StepModulation) -> torch.Tensor:
        """(B, N, C) in the transformer's dtype."""
        x_BNC = x_BNC.to(self.text_BLD.dtype)
        if self.images_BMC is not None:
            x_BNC = torch.cat([x_BNC, self.images_BMC], dim=1)
        return self.transformer(
            x_BNC,
            self.text_BLD,
            self.rope,
            modulation,
            noise_tokens=self.noise_tokens,
            zero_rows=self.zero_rows,
            attend=self.attend,
            residual=self.residual_of(step),
            activation=self.activation,
        )

    def residual_of(self, step: int) -> ResidualSum | None:
        """The residuals of this branch that act at this step."""
        acting = [(p, r) for p, r in self.branch.residuals if r.steps is None or step in r.steps]
        return ResidualSum(self.branch, acting, step) if acting else None


@dataclass(frozen=True)
class ResidualSum:
    """Adds the deltas of all residuals of a block. Each sees the tokens as the block left them."""

    branch: Branch
    residuals: Sequence[tuple[LoadedPlugin, Residual]]
    step: int

    def __call__(self, block: int, tokens_BND: torch.Tensor) -> torch.Tensor | None:
        total = None
        for plugin, residual in self.residuals:
            place = self.branch.layout.image_slice(residual.segment)
            # after the last block only the noise tokens are left, and nobody reads the others
            if (residual.blocks is not None and block not in residual.blocks) or place.start >= tokens_BND.shape[1]:
                continue
            total = tokens_BND.clone() if total is None else total
            total[:, place] += self._delta(plugin, residual, block, tokens_BND[:, place])
        return total

    def _delta(self, plugin: LoadedPlugin, residual: Residual, block: int, tokens_BND: torch.Tensor) -> torch.Tensor:
        where = f"residual {residual.name!r}, block {block}, step {self.step}, tokens {tuple(tokens_BND.shape)}"
        inputs = [t.value.to(tokens_BND) for t in residual.inputs]
        delta = plugin.run("residual_inject", where, residual.delta, block, self.step, tokens_BND, *inputs)
        if delta.shape != tokens_BND.shape:
            raise RequestError(
                f"A delta of {plugin.name} has the wrong shape ({where}).",
                got=tuple(delta.shape),
                expected=tuple(tokens_BND.shape),
            )
        return delta


def rope_for(branch: Branch, axes: Sequence[int], device: torch.device) -> Rope:
    """Rotary tables of the branch's joint tokens."""
    return rope_tables(torch.tensor(branch.layout.positions(), dtype=torch.long), axes).to(device)


def _repeat(x_1MC: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    return None if x_1MC is None else x_1MC.expand(batch, -1, -1)
