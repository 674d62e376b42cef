"""torch.compile for the transformer's blocks, one by one: off unless asked for."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import torch

from qwenimage_core.errors import QwenImageError

if TYPE_CHECKING:
    from qwenimage_core.pipeline import QwenImagePipeline


def compile_blocks(pipe: QwenImagePipeline, **options: Any) -> None:
    """Compile every block's forward when it first runs; `options` go to torch.compile (`backend`, `mode`).

    One compilation serves all blocks but the last (which leaves out what nobody reads), whatever the length of the
    prompt and the size of the picture: sizes are dynamic, and a break in the graph is an error. What changes the
    arithmetic is compiled anew when it first occurs: an adapter, references at time zero, other attention rules.
    Weights may still come and go: only the forward is compiled, not what puts them in place. Raises QwenImageError
    where torch's own backend has no C++ compiler to work with on a CPU.
    """
    if pipe.device.type == "cpu" and options.get("backend", "inductor") == "inductor":
        _check_compiler()
    for block in pipe.components["transformer"][0].skeleton.transformer_blocks:
        if "forward" not in vars(block):
            block.forward = torch.compile(block.forward, dynamic=True, fullgraph=True, **options)


def _check_compiler() -> None:
    """The one that torch would take: told now, and not by a page of its errors in the first step."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise QwenImageError(
            "Compiling for the CPU needs a C++ compiler.",
            got=f"no {compiler} here" + (" (named by CXX)" if "CXX" in os.environ else ""),
            expected=f"{usual}, or another one that CXX names",
            mend="install one (g++ of your system's packages), or run without compiling",
        )
