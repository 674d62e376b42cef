"""Two real processes, started by torchrun, on the CPU."""

from __future__ import annotations

import os
import socket
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


@pytest.fixture(scope="session")
def two_alone() -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """The same without torchrun, so that nobody ends a process when the other fails."""

    def run(*words: object, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        started = [
            subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        try:
            said = [process.communicate(timeout=LIMIT) for process in started]
        finally:
            for process in started:
                process.kill()
        return [
            subprocess.CompletedProcess(command, process.returncode, *texts)
            for process, texts in zip(started, said, strict=True)
        ]

    return run
