"""Runs of two processes on one machine, as a launcher would start them.

The processes are forked from a server that has imported what all of them need, and run nothing: each is as good as new,
and there seconds sooner.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.engines import config_file
from qwenimage_training.run import run

from .third_party import PLUGIN

OPTIONS = {"num_epochs": 2, "learning_rate": 1e-3, "max_grad_norm": 1.0}
FULL = {"lora": False, "trainable_models": "dit", "find_unused_parameters": True}
LORA = {"learning_rate": 1e-2}
AVERAGE = {**FULL, "ema_decay": 0.9, "mixed_precision": "bf16"}
LOOK = {"validation_steps": 3, "validation_prompts": "a cat on a mat", "validation_inference_steps": 2}
TEACHER = "seed,rand_device,num_inference_steps,cfg_scale"
DISTILL = {**LORA, "task": "direct_distill", "extra_inputs": TEACHER}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "full": FULL,
    "average": AVERAGE,
    "lora-looked": {**LORA, **LOOK},
    "full-looked": {**FULL, **LOOK},
    "average-looked": {**AVERAGE, **LOOK},
    "mixed": {
        **FULL,
        "learning_rate": 1e-4,
        "batch_size": 2,
        "dataset_repeat": 2,
        "extra_inputs": "side_image",
    },
    "split": LORA,
    "distill": DISTILL,
    "distill-split": DISTILL,
}
LAST = "epoch-1.safetensors"
DRAW = {
    "prompt": "a cat on a mat",
    "height": 64,
    "width": 64,
    "num_inference_steps": 4,
    "cfg_scale": 1.0,
    "seed": 3,
    "output_type": "tensor",
}

CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP2 = {**CPU, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PROCESS = Path(__file__).with_name("engine_process.py")
SERVER = multiprocessing.get_context("forkserver")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, asks when it is imported
SERVER.set_forkserver_preload(["qwenimage_core.cli.main", "qwenimage_training.run", "peft", "deepspeed"])


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


@dataclass(frozen=True)
class Started:
    """Processes that were started, and the files that they write their output to."""

    processes: tuple[Any, ...]
    outputs: tuple[Path, ...]

    def wait(self, limit: float = 120) -> tuple[list[int], list[str]]:
        """Exit codes and output. TimeoutError if one hangs; then all are ended."""
        end = time.monotonic() + limit
        try:
            for process in self.processes:
                process.join(max(end - time.monotonic(), 0))
            codes = [process.exitcode for process in self.processes]
            said = [output.read_text() for output in self.outputs]
            if None in codes:
                raise TimeoutError("\n".join(said))
        finally:
            self.kill()
        return codes, said

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


def start(
    arguments: TrainingArguments, said: dict[str, str], code: str | None = None, processes: int = 2
) -> Started:
    """`code` is run in place of the command, with the config file as its argument."""
    file, port = written(arguments), str(free_port())
    found, outputs, world = [], [], str(processes)
    for rank in map(str, range(processes)):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        output = arguments.output.with_suffix(f".{rank}.log")
        job = {
            "environment": {**os.environ, **place, **where, **said},
            "output": str(output),
            "arguments": [file] if code else ["--config", file],
            "code": code,
        }
        found.append(SERVER.Process(target=runpy.run_path, args=(str(PROCESS), {"JOB": job})))
        outputs.append(output)
    for process in found:
        process.start()
    return Started(tuple(found), tuple(outputs))


def run_two(
    arguments: TrainingArguments, said: dict[str, str], code: str | None = None, limit: float = 120
) -> tuple[list[int], list[str]]:
    """Exit codes and output of two processes."""
    return start(arguments, said, code).wait(limit)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Runs:
    """Short trainings by one process, and by two under an engine: each is run once, when it is asked for. `kind` is one
    of `KINDS`; of a split one, both stages are run."""

    def __init__(self, make: Callable[..., TrainingArguments], folder: Path, data: Path, place: Path) -> None:
        self.make, self.folder, self.place = make, folder, place
        rows = json.loads((data / "metadata.json").read_text())
        self.held_out = data / "held-out.json"
        self.held_out.write_text(json.dumps(rows[:2]))
        # neighbours take another number of steps, so that two processes do in almost every batch
        teacher = {"rand_device": "cpu", "cfg_scale": 1}
        rows = [{**row, **teacher, "seed": i, "num_inference_steps": 2 + i % 2} for i, row in enumerate(rows)]
        self.taught = place / "teacher.json"
        self.taught.write_text(json.dumps(rows))
        # half of the rows have a second picture, and go through the transformer apart from the others
        self.mixed = place / "mixed.json"
        plain = ("image", "prompt")
        self.mixed.write_text(
            json.dumps([row if i % 2 else {name: row[name] for name in plain} for i, row in enumerate(rows)])
        )
        self.plugin = place / "glance.py"
        self.plugin.write_text(PLUGIN)

    def one(self, kind: str) -> Path:
        """The output folder of one process, which sums up two batches a step."""
        output = self.place / f"one-{kind}"
        if not output.exists():
            run(self.arguments(kind, output, gradient_accumulation_steps=2))
        return output

    def two(self, kind: str, engine: str, **more: Any) -> Path:
        """The output folder of two processes."""
        name = "-".join([engine, kind, *more])
        output = self.place / name
        if not output.exists():
            self._both(self.arguments(kind, output, self.cache(kind, engine), **more), engine)
        return output

    def cache(self, kind: str, engine: str) -> Path | None:
        """What the first stage of a split kind makes, by two processes."""
        if not kind.endswith("split"):
            return None
        output = self.place / f"cache-{engine}-{kind}"
        if not output.exists():
            self._both(self.first_stage(kind, output), engine)
        return output

    def arguments(self, kind: str, output: Path, cache: Path | None = None, **more: Any) -> TrainingArguments:
        """Of a run; of the second stage where there is a cache, with the transformer alone."""
        given = {**OPTIONS, **KINDS[kind], **more, "output_path": str(output)}
        if "validation_steps" in given:
            given["validation_rows"] = str(self.held_out)
        task = given.get("task", "sft")
        if cache is not None:
            models = {"model": None, "model_paths": [str(self.folder / "transformer")]}
            return self.make(**given | models | {"task": f"{task}:train", "dataset_base_path": str(cache)})
        if kind == "mixed":
            rows = {"dataset_metadata_path": str(self.mixed), "data_file_keys": "image,side_image"}
            return self.make(**given | rows | {"plugin": [str(self.plugin)]})
        return self.make(**given | self._rows(task))

    def first_stage(self, kind: str, output: Path, **more: Any) -> TrainingArguments:
        """Of the first stage, with the encoders alone."""
        task = KINDS[kind].get("task", "sft")
        given = {
            "model": None,
            "model_paths": [str(self.folder / name) for name in ("text_encoder", "vae")],
            "tokenizer_path": str(self.folder / "tokenizer"),
            "task": f"{task}:data_process",
            "output_path": str(output),
        }
        inputs = {name: KINDS[kind][name] for name in ("extra_inputs",) if name in KINDS[kind]}
        return self.make(lora=False, **given | inputs | self._rows(task) | more)

    def _rows(self, task: str) -> dict[str, str]:
        return {"dataset_metadata_path": str(self.taught)} if task == "direct_distill" else {}

    def _both(self, arguments: TrainingArguments, engine: str) -> None:
        codes, said = run_two(arguments, environment(engine))
        assert codes == [0, 0], said

    def draw(self, kind: str, output: Path | None) -> torch.Tensor:
        """A picture (3, H, W), -1 to 1, by a pipeline that loads the last file of a run; None: of no training."""
        return self.pipe(kind, output)(**DRAW)

    def pipe(self, kind: str, output: Path | None) -> QwenImagePipeline:
        device: dict[str, Any] = {"device": "cpu"}
        if KINDS[kind].get("mixed_precision") == "bf16":
            device["torch_dtype"] = torch.bfloat16
        if output is None or KINDS[kind].get("lora", True):
            pipe = QwenImagePipeline.from_pretrained(str(self.folder), **device)
            if output is not None:
                pipe.load_lora(output / LAST)
            return pipe
        kept = [ModelConfig(path=self.folder / name) for name in ("text_encoder", "vae")]
        return QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=output / LAST), *kept],
            tokenizer_config=ModelConfig(path=self.folder / "tokenizer"),
            **device,
        )
