"""Runs of two processes on one machine, as a launcher would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.engines import config_file

CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP2 = {**CPU, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def environment(engine: str) -> dict[str, str]:
    """What `accelerate launch` would say in the environment for our configuration of the engine, on CPUs."""
    config = yaml.safe_load(config_file(engine).read_text())
    if config["distributed_type"] == "DEEPSPEED":
        deepspeed = config["deepspeed_config"]
        return {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(deepspeed["zero_stage"]),
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": deepspeed["offload_optimizer_device"],
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(deepspeed["zero3_init_flag"]).lower(),
            "DS_ACCELERATOR": "cpu",
        }
    return FSDP2 if config["distributed_type"] == "FSDP" else CPU


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def written(arguments: TrainingArguments) -> str:
    """A config file that says the same."""
    file = arguments.output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(arguments.model_dump(mode="json", exclude_unset=True)))
    return str(file)


def run_two(
    arguments: TrainingArguments, said: dict[str, str], code: str | None = None, limit: float = 280
) -> tuple[list[int], list[str]]:
    """Exit codes and output of two processes. TimeoutExpired if one hangs; then both are ended. `code` is run in place
    of the command, with the config file as its argument."""
    file = written(arguments)
    what = ["-c", code, file] if code else ["-m", "qwenimage_training", "--config", file]
    port, processes = str(free_port()), []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **place, **where, **said}
        processes.append(
            subprocess.Popen(
                [sys.executable, *what], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    try:
        outputs = [process.communicate(timeout=limit)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
