"""Two processes on the CPU train as one process that sums up two batches: the same curve and the same file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qwenimage_training.run import run

STEPS = {"num_epochs": 2, "learning_rate": 1e-3, "max_grad_norm": 1.0}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_equal_one(make_arguments, tmp_path: Path) -> None:
    run(make_arguments(**STEPS, gradient_accumulation_steps=2, output_path=str(tmp_path / "one")))
    arguments = make_arguments(**STEPS, output_path=str(tmp_path / "two"))
    values = arguments.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    code = (
        "import sys, torch; torch.set_num_threads(1);"
        "from qwenimage_training.run import run;"
        "from qwenimage_training.settings import read_config, validated;"
        "run(validated(read_config(sys.argv[1])))"
    )
    port = str(free_port())
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "run.yaml")],
                env={**os.environ, **place, **where, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 6
    for value in ("loss", "grad_norm"):
        assert [line[value] for line in two] == pytest.approx([line[value] for line in one], rel=1e-5)
    assert [line["samples"] for line in two] == [2] * 6
    files = [load_file(tmp_path / name / "epoch-1.safetensors") for name in ("one", "two")]
    for name, tensor in files[0].items():
        torch.testing.assert_close(files[1][name], tensor, rtol=1e-4, atol=1e-6)
