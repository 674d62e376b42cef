"""Two real processes, started by torchrun, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LIMIT = 150  # seconds: a run that hangs is a failure

Torchrun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    """torchrun("script.py" or "-m", "module", ...): two processes of it; what they printed, and the exit code."""

    def run(*words: object, cwd: Path, alone: bool = False) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *([] if alone else launcher), *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "QWENIMAGE_DEBUG": "0"}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )

    return run
