"""A plan's branches bound to the transformer: from noisy latents and a step to a velocity.

B pictures of one prompt, N noise tokens, M appended tokens, C packed channels, L text tokens, E text encoder width,
D transformer width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from qwenimage_core.attention import Attend, attention_for
from qwenimage_core.errors import RequestError
from qwenimage_core.inputs import Inputs
from qwenimage_core.layout import Layout
from qwenimage_core.loop import Velocity, guide
from qwenimage_core.models.modulation import StepModulation
from qwenimage_core.models.rope import Rope, rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, lockstep
from qwenimage_core.plan import Branch, Plan
from qwenimage_core.registry import LoadedPlugin
from qwenimage_core.values import Residual


def bind(
    transformer: QwenImageTransformer, plan: Plan, inputs: Inputs, table: StepModulation | None = None
) -> Velocity:
    """The guided velocity of a plan. Modulation of all steps (unless `table` is it), text tokens, rotary tables and
    attention are made here, once; a step costs one transformer pass a branch."""
    branches = [
        BoundBranch(transformer, plan, branch, inputs, text_1LE)
        for branch, text_1LE in zip(plan.branches, inputs.texts, strict=True)
    ]
    table = modulation_table(transformer, plan, plan.sigmas[:-1]) if table is None else table
    scale, normalize = plan.request.cfg_scale, plan.request.cfg_normalize

    def velocity(x_BNC: torch.Tensor, step: int) -> torch.Tensor:
        modulation = table.step(step)
        positive, *negative = lockstep([branch.blockwise(x_BNC, step, modulation) for branch in branches])
        return guide(positive, negative[0], scale, normalize) if negative else positive

    return velocity


def modulation_table(
    transformer: QwenImageTransformer, plan: Plan, sigmas: Sequence[float]
) -> StepModulation:
    """Modulation at each noise level; a time-zero row where a branch has tokens that need it."""
    return transformer.modulation_table([1000 * s for s in sigmas], *modulation_options(transformer, plan))


def modulation_options(transformer: QwenImageTransformer, plan: Plan) -> tuple[int | None, bool]:
    """(row of the additional embedding, whether there is a time-zero row): what a plan's modulation needs besides the
    timestep."""
    addition_t = plan.options.addition_t
    if addition_t is None and transformer.config.use_additional_t_cond:
        addition_t = 0
    return addition_t, any(branch.layout.zero_slices for branch in plan.branches)


class BoundBranch:
    """One branch with the transformer: all that stays the same from step to step is computed here, once."""

    def __init__(
        self,
        transformer: QwenImageTransformer,
        plan: Plan,
        branch: Branch,
        inputs: Inputs,
        text_1LE: torch.Tensor,
    ) -> None:
        device = inputs.latents_BNC.device
        self.transformer, self.branch = transformer, branch
        self.activation = plan.options.activation
        self.batch = len(plan.seeds)
        self.images_BMC = _repeat(inputs.images_1MC, self.batch)
        self.text_BLD = transformer.embed_text(text_1LE).expand(self.batch, -1, -1)
        self.rope = rope_for(branch.layout, tuple(plan.backbone.rope_axes), device)
        self.attend: Attend | None = attention_for([rule for _, rule in branch.rules], branch.layout, device)
        self.zero_rows = branch.layout.zero_slices
        self.noise_tokens = plan.grid.tokens

    def velocity(
        self, x_BNC: torch.Tensor, step: int, modulation: StepModulation, *, checkpointing: bool = False
    ) -> torch.Tensor:
        """(B, N, C) in the transformer's dtype. `checkpointing` is for training: blocks are recomputed backwards."""
        return lockstep([self.blockwise(x_BNC, step, modulation, checkpointing=checkpointing)])[0]

    def blockwise(
        self, x_BNC: torch.Tensor, step: int, modulation: StepModulation, *, checkpointing: bool = False
    ) -> Generator[None, None, torch.Tensor]:
        """The same with a pause after each block."""
        x_BNC = x_BNC.to(self.text_BLD.dtype)
        if self.images_BMC is not None:
            x_BNC = torch.cat([x_BNC, self.images_BMC], dim=1)
        return self.transformer.blockwise(
            x_BNC,
            self.text_BLD,
            self.rope,
            modulation,
            noise_tokens=self.noise_tokens,
            zero_rows=self.zero_rows,
            attend=self.attend,
            residual=self.residual_of(step),
            activation=self.activation,
            checkpointing=checkpointing,
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
            if (
                residual.blocks is not None and block not in residual.blocks
            ) or place.start >= tokens_BND.shape[1]:
                continue
            total = tokens_BND.clone() if total is None else total
            total[:, place] += self._delta(plugin, residual, block, tokens_BND[:, place])
        return total

    def _delta(
        self, plugin: LoadedPlugin, residual: Residual, block: int, tokens_BND: torch.Tensor
    ) -> torch.Tensor:
        where = (
            f"residual {residual.name!r}, block {block}, step {self.step}, tokens {tuple(tokens_BND.shape)}"
        )
        inputs = [t.value.to(tokens_BND) for t in residual.inputs]
        delta = plugin.run("residual_inject", where, residual.delta, block, self.step, tokens_BND, *inputs)
        if delta.shape != tokens_BND.shape:
            raise RequestError(
                f"A delta of {plugin.name} has the wrong shape ({where}).",
                got=tuple(delta.shape),
                expected=tuple(tokens_BND.shape),
            )
        return delta


@lru_cache(maxsize=8)  # both branches of a run, and all samples of a training, share a few layouts
def rope_for(layout: Layout, axes: tuple[int, ...], device: torch.device) -> Rope:
    """Rotary tables of a branch's joint tokens."""
    return rope_tables(torch.tensor(layout.positions(), dtype=torch.long), axes).to(device)


def _repeat(x_1MC: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    return None if x_1MC is None else x_1MC.expand(batch, -1, -1)
