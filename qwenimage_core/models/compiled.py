"""torch.compile for the transformer's blocks, one by one: off unless asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from qwenimage_core.pipeline import QwenImagePipeline


def compile_blocks(pipe: QwenImagePipeline, **options: Any) -> None:
    """Compile every block's forward when it first runs; `options` go to torch.compile (`backend`, `mode`).

    One compilation serves all blocks but the last (which leaves out what nobody reads), whatever the length of the
    prompt and the size of the picture: sizes are dynamic, and a break in the graph is an error. What changes the
    arithmetic is compiled anew when it first occurs: an adapter, references at time zero, other attention rules.
    Weights may still come and go: only the forward is compiled, not what puts them in place.
    """
    for block in pipe.components["transformer"][0].skeleton.transformer_blocks:
        if "forward" not in vars(block):
            block.forward = torch.compile(block.forward, dynamic=True, fullgraph=True, **options)
