"""One double-stream block: image and text tokens each with their own weights, joined in one attention.

Shape legend: B batch, N image tokens, L text tokens, S = L + N joint tokens (text first), M kept image
tokens, D width, H heads, R timestep rows, E = 6 D. Submodules carry the published tensor names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwenimage_core.models.modulation import (
    WHOLE,
    Modulator,
    Rows,
    Runs,
    add_gated,
    norm_and_modulate,
    vectors,
)
from qwenimage_core.models.norms import RMSNorm
from qwenimage_core.models.rope import Rope
from qwenimage_core.models.transformer_config import Activation, TransformerConfig

FLOAT16_LIMIT = 65504.0

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""attend(q_BHQD, k_BHSD, v_BHSD) -> out_BHQD. The queries are all S joint tokens, or in the last block the
Q = noise_tokens first image tokens only."""


class _Up(nn.Module):
    """First half of the feed-forward; exists for its published tensor name."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)


class FeedForward(nn.Module):
    """Two linears around one of the two activations; `quick_gelu` is x * sigmoid(1.702 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle place was a dropout in training; it keeps the published name of the last linear, net.2.
        self.net = nn.ModuleList([_Up(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor, activation: Activation) -> Tensor:
        x = cast(_Up, self.net[0]).proj(x)
        x = F.gelu(x, approximate="tanh") if activation == "gelu_tanh" else x * torch.sigmoid(1.702 * x)
        return self.net[2](x)


class JointAttention(nn.Module):
    """Attention over [text, image]; both streams have their own projections and query/key norms."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q = RMSNorm(head_dim)
        self.norm_k = RMSNorm(head_dim)
        self.add_q_proj = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(width, width)
        self.add_v_proj = nn.Linear(width, width)
        self.to_add_out = nn.Linear(width, width)
        self.norm_added_q = RMSNorm(head_dim)
        self.norm_added_k = RMSNorm(head_dim)

    def forward(
        self, image_BND: Tensor, text_BLD: Tensor, rope: Rope, attend: Attend | None, keep: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output of both streams; with `keep`, of the first `keep` image tokens and no text."""
        text_tokens = text_BLD.shape[1]
        q_image = self._heads(self.to_q(image_BND[:, :keep]), self.norm_q)
        k_image = self._heads(self.to_k(image_BND), self.norm_k)
        k_text = self._heads(self.add_k_proj(text_BLD), self.norm_added_k)
        k = rope.apply(torch.cat([k_text, k_image], dim=2))  # (B, H, S, head_dim)
        v = torch.cat([self._heads(self.add_v_proj(text_BLD)), self._heads(self.to_v(image_BND))], dim=2)
        if keep is None:
            q_text = self._heads(self.add_q_proj(text_BLD), self.norm_added_q)
            q = rope.apply(torch.cat([q_text, q_image], dim=2))
        else:
            q = rope.rows(text_tokens, text_tokens + keep).apply(q_image)

        out = F.scaled_dot_product_attention(q, k, v) if attend is None else attend(q, k, v)
        out = out.transpose(1, 2).flatten(2).to(image_BND.dtype)  # (B, H, Q, head_dim) -> (B, Q, D)
        if keep is not None:
            return self.to_out[0](out), None
        out_text, out_image = out.split([text_tokens, image_BND.shape[1]], dim=1)
        return self.to_out[0](out_image), self.to_add_out(out_text)

    def _heads(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """(B, tokens, D) -> (B, H, tokens, head_dim), normed per head."""
        x = x.unflatten(-1, (-1, self.head_dim))
        return (x if norm is None else norm(x)).transpose(1, 2)


class TransformerBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.img_mod = Modulator(nn.SiLU(), nn.Linear(width, 6 * width))
        self.txt_mod = Modulator(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attn = JointAttention(width, config.attention_head_dim)
        self.img_mlp = FeedForward(width)
        self.txt_mlp = FeedForward(width)

    def forward(
        self,
        image_BND: Tensor,
        text_BLD: Tensor,
        image_RBE: Tensor,
        text_BE: Tensor,
        rope: Rope,
        activation: Activation,
        runs: Runs = WHOLE,
        kept_runs: Runs = WHOLE,
        attend: Attend | None = None,
        keep: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both streams after this block. With `keep` (the last block) the image stream is its first `keep`
        tokens and the text stream is returned as it came, because nobody reads what would become of it. `runs`
        are the image tokens' timestep rows, `kept_runs` those of the tokens that are returned."""
        image_mod, text_mod = vectors(image_RBE), vectors(text_BE.unsqueeze(0))
        image_attended, text_attended = self.attn(
            norm_and_modulate(image_BND, image_mod[0], image_mod[1], runs),
            norm_and_modulate(text_BLD, text_mod[0], text_mod[1], WHOLE),
            rope,
            attend,
            keep,
        )
        kept_BMD = image_BND[:, :keep]
        image = _finish(kept_BMD, image_attended, image_mod, kept_runs, self.img_mlp, activation)
        if text_attended is None:
            return image, text_BLD
        return image, _finish(text_BLD, text_attended, text_mod, WHOLE, self.txt_mlp, activation)


def _finish(
    x_BND: Tensor, attended_BND: Tensor, mod: Sequence[Rows], runs: Runs, mlp: FeedForward, act: Activation
) -> Tensor:
    """Add the attention's share, then the feed-forward's."""
    x_BND = add_gated(x_BND, attended_BND, mod[2], runs)
    x_BND = add_gated(x_BND, mlp(norm_and_modulate(x_BND, mod[3], mod[4], runs), act), mod[5], runs)
    return x_BND.clip(-FLOAT16_LIMIT, FLOAT16_LIMIT) if x_BND.dtype == torch.float16 else x_BND
