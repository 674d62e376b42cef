"""From rules about segments to the cheapest exact way of computing attention.

No rule: no mask object at all, plain attention. Otherwise one of two exact forms, whichever is cheaper. Grouped: tokens
that see the same keys are attended together, unmasked, with only those keys; nothing of size S x S exists. Masked: one
boolean mask, made once a run.

B batch, H heads, S joint tokens, Q queries, D channels a head, V views, K classes, R maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwenimage_core.errors import RequestError
from qwenimage_core.layout import NOISE, Layout
from qwenimage_core.values import Apart, Within

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

MAX_VIEWS = 48
"""On accelerators a mask rules out the flash kernels: there, up to this many different views are grouped."""
GATHERED_KEY = 50.0
"""On a CPU, copying a key and its value costs as much as attending it to this many queries (measured, 32 and 128
channels a head)."""


def attention_for(
    rules: Sequence[Apart | Within], layout: Layout, device: torch.device | str
) -> Attend | None:
    """The attention of one branch; None where every token sees every token.

    Raises RequestError for a rule about a segment that is not in the layout or a map of another size than its grid.
    """
    if not rules:
        return None
    view_S, views_VS = visible_keys(rules, layout)
    if bool(views_VS.all()):
        return None
    noise = layout.joint_slice(NOISE)
    if not _grouping_pays(view_S, views_VS, torch.device(device)):
        mask_SS = views_VS[view_S].to(device)
        return Masked(mask_SS, mask_SS[noise])
    return Grouped(_groups(view_S, views_VS, device), _groups(view_S[noise], views_VS, device), layout.tokens)


def _grouping_pays(view_S: torch.Tensor, views_VS: torch.Tensor, device: torch.device) -> bool:
    """Whether attending group by group is cheaper than once with a mask."""
    if device.type != "cpu":
        return len(views_VS) <= MAX_VIEWS
    queries_V = torch.bincount(view_S, minlength=len(views_VS))
    keys_V = views_VS.sum(dim=1)
    return bool((queries_V * keys_V + GATHERED_KEY * keys_V).sum() < len(view_S) ** 2)


def _groups(view_Q: torch.Tensor, views_VS: torch.Tensor, device: torch.device | str) -> Groups:
    """The queries of each view that occurs, the keys they see, and the order that puts the queries back in place."""
    pairs = []
    for view in torch.unique(view_Q):
        queries, keys = (view_Q == view).nonzero().flatten(), views_VS[view].nonzero().flatten()
        pairs.append((queries.to(device), keys.to(device)))
    return Groups(tuple(pairs), torch.argsort(torch.cat([queries for queries, _ in pairs])))


def visible_keys(rules: Sequence[Apart | Within], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """(view of each token (S,), keys each view sees (V, S) bool): tokens of one view see exactly the same keys."""
    classes_S, allowed_KK = _classes(rules, layout)
    views_VK, view_K = torch.unique(allowed_KK, dim=0, return_inverse=True)
    return view_K[classes_S], views_VK[:, classes_S]


def _classes(rules: Sequence[Apart | Within], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that no rule tells apart form a class: (class of each token (S,), which class sees which (K, K))."""
    withins = [r for r in rules if isinstance(r, Within)]
    # one column a map: 1 where it lets the token be seen, also outside its own image segment
    marks_SR = torch.ones(layout.tokens, len(withins), dtype=torch.bool)
    segment_S = torch.empty(layout.tokens, dtype=torch.long)
    for i, segment in enumerate(layout.segments):
        segment_S[layout.joint_slice(segment.name)] = i
    for column, within in enumerate(withins):
        marks_SR[layout.joint_slice(within.image), column] = _spatial_map(within, layout)
    keys_KR, classes_S = torch.unique(
        torch.cat([segment_S[:, None], marks_SR.long()], dim=1), dim=0, return_inverse=True
    )
    names = [layout.segments[int(i)].name for i in keys_KR[:, 0]]
    allowed_KK = torch.ones(len(names), len(names), dtype=torch.bool)
    for rule in rules:
        if isinstance(rule, Apart):
            _check_known((rule.a, rule.b), layout)
            hide = _is(names, rule.a)[:, None] & _is(names, rule.b)[None, :]
        else:
            off_K = keys_KR[:, 1 + withins.index(rule)] == 0
            hide = _is(names, rule.text)[:, None] & (_is(names, rule.image) & off_K)[None, :]
        allowed_KK &= ~(hide | hide.T)
    return classes_S, allowed_KK


def _is(names: Sequence[str], name: str) -> torch.Tensor:
    return torch.tensor([n == name for n in names])


def _check_known(names: Sequence[str], layout: Layout) -> None:
    if strangers := [name for name in names if name not in layout]:
        raise RequestError(
            "An attention rule speaks of a segment that is not there.",
            got=strangers[0],
            expected=[s.name for s in layout.segments],
        )


def _spatial_map(rule: Within, layout: Layout) -> torch.Tensor:
    _check_known((rule.text, rule.image), layout)
    grid = layout[rule.image].grid
    if grid is None or tuple(rule.where.shape) != (grid.height, grid.width) or rule.where.dtype != torch.bool:
        raise RequestError(
            f"The map of {rule.text!r} over {rule.image!r} does not fit that segment's grid.",
            got=f"{tuple(rule.where.shape)} {rule.where.dtype}",
            expected=f"({grid.height}, {grid.width}) torch.bool" if grid else "an image segment",
        )
    return rule.where.flatten().repeat(grid.frames)


@dataclass(frozen=True)
class Groups:
    """(queries, keys they see) as token numbers, and where each query goes when the groups' results are joined."""

    pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    order: torch.Tensor


@dataclass(frozen=True)
class Grouped:
    """Each group of queries over the keys that it sees: exact, and no mask.

    The queries are all `tokens` joint tokens, or the noise tokens alone (the last block needs no others).
    """

    joint: Groups
    noise: Groups
    tokens: int

    def __call__(self, q_BHQD: torch.Tensor, k_BHSD: torch.Tensor, v_BHSD: torch.Tensor) -> torch.Tensor:
        groups = self.joint if q_BHQD.shape[2] == self.tokens else self.noise
        outs = []
        for queries, keys in groups.pairs:
            everything = len(keys) == self.tokens
            k, v = (k_BHSD, v_BHSD) if everything else (k_BHSD[:, :, keys], v_BHSD[:, :, keys])
            outs.append(F.scaled_dot_product_attention(q_BHQD[:, :, queries], k, v))
        return torch.cat(outs, dim=2)[:, :, groups.order]


@dataclass(frozen=True)
class Masked:
    """One boolean mask, true where a query (row) sees a key (column); `noise_QS` are the noise tokens' rows of it."""

    joint_SS: torch.Tensor
    noise_QS: torch.Tensor

    def __call__(self, q_BHQD: torch.Tensor, k_BHSD: torch.Tensor, v_BHSD: torch.Tensor) -> torch.Tensor:
        mask = self.joint_SS if q_BHQD.shape[2] == len(self.joint_SS) else self.noise_QS
        return F.scaled_dot_product_attention(q_BHQD, k_BHSD, v_BHSD, attn_mask=mask)
