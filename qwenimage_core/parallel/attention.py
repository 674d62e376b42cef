"""Attention of a process's own queries over the keys of all processes, by the same rules.

B batch, H heads, Q own queries, S joint tokens, D channels a head; an index "own" means this process's tokens of these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qwenimage_core.attention import Attend, Grouped, Groups, Masked
from qwenimage_core.errors import RequestError
from qwenimage_core.parallel.gather import Gather


class GatheredAttention:
    """`joint_Q` are the joint numbers of the own tokens, `noise_Q` those of the own noise tokens, which are the queries
    of the last block."""

    def __init__(self, attend: Attend | None, gather: Gather, joint_Q: Tensor, noise_Q: Tensor) -> None:
        self.gather = gather
        self.joint, self.noise = of_queries(attend, joint_Q), of_queries(attend, noise_Q)
        self.own = len(joint_Q)

    def __call__(self, q_BHQD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
        # one message for both: (B, H, own, 2 D)
        both = self.gather(torch.cat([k_BHSD, v_BHSD], dim=-1), dim=2)
        k, v = (each.contiguous() for each in both.chunk(2, dim=-1))
        attend = self.joint if q_BHQD.shape[2] == self.own else self.noise
        return F.scaled_dot_product_attention(q_BHQD, k, v) if attend is None else attend(q_BHQD, k, v)


def of_queries(attend: Attend | None, queries_Q: Tensor) -> Attend | None:
    """The same attention for these queries only, which are joint token numbers."""
    if attend is None:
        return None
    if isinstance(attend, Masked):
        rows_QS = attend.joint_SS[queries_Q]
        return Masked(rows_QS, rows_QS)
    if isinstance(attend, Grouped):
        groups = _groups(attend, queries_Q)
        return Grouped(groups, groups, attend.tokens)
    raise RequestError(
        'parallel="sequence" does not know this attention.',
        got=type(attend).__name__,
        mend='use parallel="tensor" or "data"',
    )


def _groups(attend: Grouped, queries_Q: Tensor) -> Groups:
    """Each group's queries that are among these, by their place there."""
    group_S = torch.empty(attend.tokens, dtype=torch.long, device=queries_Q.device)
    for number, (queries, _) in enumerate(attend.joint.pairs):
        group_S[queries] = number
    group_Q = group_S[queries_Q]
    pairs = []
    for number, (_, keys) in enumerate(attend.joint.pairs):
        places = (group_Q == number).nonzero().flatten()
        if len(places):
            pairs.append((places, keys))
    return Groups(tuple(pairs), torch.argsort(torch.cat([places for places, _ in pairs])))
