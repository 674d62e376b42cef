"""Loading takes the memory that stays, and not the file's a second time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS, SIDE = 80, 1024  # large enough that what the interpreter itself takes, some 3 MB, does not show

# VmHWM is the process's highest resident memory, mapped files included; writing 5 to clear_refs starts it anew.
MEASURE = f"""
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.components import Component
from qwenimage_core.loading.recognise import ComponentSpec

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def build(config, shapes):
    return nn.Sequential(*[nn.Linear({SIDE}, {SIDE}, bias=False) for _ in range({LAYERS})])

def measure(dtype):
    spec = ComponentSpec(name="net", build=build, recognise=lambda shapes: True)
    component = Component(spec, Checkpoint.open(sys.argv[1]), dtype=dtype)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    component.load()
    peak, after = resident("VmHWM"), resident("VmRSS")
    component.release()
    print(json.dumps([component.bytes, peak - before, after - before, resident("VmRSS") - before]), flush=True)

for dtype in (torch.float32, torch.bfloat16):
    if os.fork() == 0:  # each begins with the same memory, and torch is imported once
        measure(dtype)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_peak_is_what_stays_and_release_returns_it(tmp_path: Path) -> None:
    weights = {f"{number}.weight": torch.zeros(SIDE, SIDE) for number in range(LAYERS)}
    save_file(weights, tmp_path / "net.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "net.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    tensor = SIDE * SIDE * 4
    for itemsize, (announced, peak, stays, released) in zip((4, 2), measured, strict=True):
        assert announced == LAYERS * SIDE * SIDE * itemsize
        assert 0.97 * announced <= stays <= peak, "the measure sees the weights"
        # The bound of the project, 1.05 of what stays, and the one tensor that is on its way.
        assert peak <= 1.05 * announced + tensor
        assert released <= 0.05 * announced + tensor
