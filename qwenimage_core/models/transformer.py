"""The double-stream diffusion transformer of the Qwen-Image family, with the published tensor names.

Shape legend: B batch, N image tokens (noise first, then appended ones), M noise tokens, L text tokens, C
packed latent channels, E text encoder width, D width, S = L + N joint tokens, text first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qwenimage_core.models.modulation import (
    WHOLE,
    StepModulation,
    TimestepEmbedding,
    norm_and_modulate,
    timestep_runs,
)
from qwenimage_core.models.norms import RMSNorm
from qwenimage_core.models.rope import Rope
from qwenimage_core.models.transformer_block import Attend, TransformerBlock
from qwenimage_core.models.transformer_config import Activation, TransformerConfig

__all__ = [
    "Attend",
    "QwenImageTransformer",
    "Residual",
    "StepModulation",
    "TransformerConfig",
    "lockstep",
]

Residual = Callable[[int, Tensor], Tensor | None]
"""residual(block, image_BND) -> the tokens to go on with, or None for no change. After the last block only
the noise tokens are left: (B, M, D)."""


class _FinalNorm(nn.Module):
    """Holds the projection of the timestep that scales and shifts the last norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, embedding_BD: Tensor) -> tuple[Tensor, Tensor]:
        scale_BD, shift_BD = self.linear(F.silu(embedding_BD)).chunk(2, dim=-1)
        return scale_BD, shift_BD


def lockstep(passes: Sequence[Generator[None, None, Tensor]]) -> list[Tensor]:
    """Run passes through the transformer block by block side by side, so that a block which has to be read serves them
    all. Each computes what it would compute alone."""
    velocities: dict[int, Tensor] = {}
    while len(velocities) < len(passes):
        for number, each in enumerate(passes):
            try:
                next(each)
            except StopIteration as end:
                velocities[number] = end.value
    return [velocities[number] for number in range(len(passes))]


class QwenImageTransformer(nn.Module):
    """Predicts the velocity (noise minus picture) of packed latents.

    One run calls `embed_text` once, `modulation` once a step (or `modulation_table` once for all of them), and the
    module itself once a step and branch.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.time_text_embed = TimestepEmbedding(config.width, config.use_additional_t_cond)
        self.txt_norm = RMSNorm(config.joint_attention_dim)
        self.img_in = nn.Linear(config.in_channels, config.width)
        self.txt_in = nn.Linear(config.joint_attention_dim, config.width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config) for _ in range(config.num_layers)])
        self.norm_out = _FinalNorm(config.width)
        self.proj_out = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    def embed_text(self, text_BLE: Tensor) -> Tensor:
        """Prompt encoding -> text tokens (B, L, D). Independent of the step."""
        return self.txt_in(self.txt_norm(text_BLE))

    def modulation(
        self, timestep: float | Tensor, addition_t: int | None = None, zero: bool = False
    ) -> StepModulation:
        """All that depends on `timestep` (0..1000; one number, or (B,) for a batch).

        `addition_t` is the row of the additional embedding, for models that have it and only for them. `zero`
        adds a second row for the tokens that are modulated as if the timestep were 0.
        """
        weight = self.txt_norm.weight
        timestep_B = torch.as_tensor(timestep, dtype=torch.float32, device=weight.device).reshape(-1)
        return self._modulation([self._embed_time(timestep_B, addition_t, zero)])

    def modulation_table(
        self, timesteps: Sequence[float], addition_t: int | None = None, zero: bool = False
    ) -> StepModulation:
        """`modulation` of each timestep, bit for bit, with each block's modulation weights used in one go: they may
        come from disk and go again."""
        device = self.txt_norm.weight.device
        singles = [torch.tensor([t], dtype=torch.float32, device=device) for t in timesteps]
        return self._modulation([self._embed_time(single, addition_t, zero) for single in singles])

    def _embed_time(self, timestep_B: Tensor, addition_t: int | None, zero: bool) -> Tensor:
        """Embeddings (R, B, D)."""
        if (addition_t is not None) != self.config.use_additional_t_cond:
            expected = "0 or 1" if addition_t is None else "None: this transformer has no such embedding"
            raise ValueError(f"addition_t is {addition_t}, expected {expected}")
        dtype = self.txt_norm.weight.dtype
        rows = [self.time_text_embed(timestep_B, addition_t, dtype)]
        if zero:
            rows.append(self.time_text_embed(torch.zeros_like(timestep_B), addition_t, dtype))
        return torch.stack(rows)

    def _modulation(self, embeddings: Sequence[Tensor]) -> StepModulation:
        """From embeddings (R, B, D), each computed by itself, joined along B."""
        blocks = cast(Sequence[TransformerBlock], self.transformer_blocks)
        steps = [rows_RBD[0] for rows_RBD in embeddings]  # (B, D)
        final = [self.norm_out(step_BD) for step_BD in steps]
        return StepModulation(
            torch.stack([block.img_mod(*embeddings) for block in blocks]),
            torch.stack([block.txt_mod(*steps) for block in blocks]),
            torch.cat([scale_BD for scale_BD, _ in final]),
            torch.cat([shift_BD for _, shift_BD in final]),
        )

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """One pass, see `blockwise`."""
        return lockstep([self.blockwise(*args, **options)])[0]

    def blockwise(
        self,
        x_BNC: Tensor,
        text_BLD: Tensor,
        rope: Rope,
        modulation: StepModulation,
        *,
        noise_tokens: int,
        zero_rows: tuple[slice, ...] = (),
        attend: Attend | None = None,
        residual: Residual | None = None,
        activation: Activation | None = None,
        checkpointing: bool = False,
    ) -> Generator[None, None, Tensor]:
        """Velocity of the first `noise_tokens` image tokens, (B, M, C), with a pause after each block.

        `text_BLD` comes from `embed_text`; `rope` covers the S joint tokens, text first. `zero_rows` are the
        runs of the image stream modulated by row 1 of `modulation`. `attend` replaces unmasked attention,
        `residual` sees and may change the image tokens after each block, `activation` overrides the config's
        for this call. With `checkpointing`, blocks are recomputed in the backward pass instead of keeping
        their activations.
        """
        self._check(x_BNC, text_BLD, rope, modulation, noise_tokens, zero_rows)
        image, text = self.img_in(x_BNC), text_BLD
        runs, kept_runs = (timestep_runs(tokens, zero_rows) for tokens in (x_BNC.shape[1], noise_tokens))
        how = rope, activation or self.config.activation
        last = len(self.transformer_blocks) - 1
        # unbound at once: in the backward pass, one block's share would else be a table of all blocks, mostly zeros
        images_RBE, texts_BE = modulation.image_LRBE.unbind(0), modulation.text_LBE.unbind(0)
        for number, block in enumerate(self.transformer_blocks):
            keep, kept = (noise_tokens, kept_runs) if number == last else (None, runs)
            inputs = (image, text, images_RBE[number], texts_BE[number], *how, runs, kept, attend, keep)
            if checkpointing and torch.is_grad_enabled():
                image, text = checkpoint(block, *inputs, use_reentrant=False)
            else:
                image, text = block(*inputs)
            if residual is not None and (changed := residual(number, image)) is not None:
                image = changed
            yield
        shift, scale = ([row_BD[:, None]] for row_BD in (modulation.shift_BD, modulation.scale_BD))
        return self.proj_out(norm_and_modulate(image, shift, scale, WHOLE))

    def _check(
        self,
        x_BNC: Tensor,
        text_BLD: Tensor,
        rope: Rope,
        modulation: StepModulation,
        noise_tokens: int,
        zero_rows: tuple[slice, ...],
    ) -> None:
        """Mismatches that would otherwise broadcast or be cut off in silence."""
        batch, tokens = x_BNC.shape[:2]
        texts, text_tokens = text_BLD.shape[:2]
        times, rows = modulation.scale_BD.shape[0], modulation.image_LRBE.shape[1]
        if texts != batch or times not in (1, batch):
            raise ValueError(f"{batch} samples come with {texts} texts and {times} timesteps")
        if len(rope) != text_tokens + tokens:
            raise ValueError(f"rope covers {len(rope)} tokens, expected {text_tokens} text + {tokens} image")
        if not 0 < noise_tokens <= tokens:
            raise ValueError(f"noise_tokens is {noise_tokens}, expected 1..{tokens}")
        if zero_rows and (rows < 2 or max(run.stop for run in zero_rows) > tokens):
            raise ValueError(
                f"zero_rows {zero_rows} do not fit {tokens} tokens, or lack modulation(zero=True)"
            )
