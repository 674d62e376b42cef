"""The most memory that loading a checkpoint takes, over what stays: a transformer of the published width, 6 blocks.

Stored in bfloat16, loaded as it is stored and into float32 (each tensor passes through memory once), in processes of
their own. A run takes a minute and 8 GB: `python tests/benchmarks/bench_load_memory.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timing import finish, machine, report

from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.component import Component
from qwenimage_core.loading.recognise import TRANSFORMER
from qwenimage_core.memory.measure import in_use, peak
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

TARGET = 1.05
BLOCKS = 6
CPU = torch.device("cpu")


def write(folder: Path) -> None:
    """A transformer of the published width."""
    config: dict[str, Any] = {"num_layers": BLOCKS}
    with torch.device("meta"):
        shapes = QwenImageTransformer(TransformerConfig(**config)).state_dict()
    save_file(
        {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in shapes.items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))


def load(folder: Path, dtype: str) -> None:
    """In a process of its own: peak and what stays, in bytes, on stdout."""
    component = Component(TRANSFORMER, Checkpoint.open(folder), dtype=getattr(torch, dtype))
    before = in_use(CPU) or 0
    with peak(CPU) as most:
        component.load(whole=True)
    print((most.bytes or 0) - before, (in_use(CPU) or 0) - before, component.bytes)


def main() -> None:
    print(machine())
    reached = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, __file__, folder, dtype]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            most, stays, weights = map(int, done.stdout.split())
            detail = f"{most / 2**30:.3f} GiB over {stays / 2**30:.3f} GiB, weights {weights / 2**30:.3f} GiB"
            reached.append(
                report(f"peak while loading {dtype}, over what stays", most / stays, TARGET, detail)
            )
    finish(*reached)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
