"""Two processes on the CPU train as one process that sums up two batches: the same curve and the same file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core import QwenImagePipeline
from qwenimage_training.checkpoint import states
from qwenimage_training.engines import config_file
from qwenimage_training.run import run

from .engine_runs import environment, free_port, read_log, run_two, written

STEPS = {"num_epochs": 2, "learning_rate": 1e-3, "max_grad_norm": 1.0}
FULL = {"lora": False, "trainable_models": "dit"}
POISON = """
import sys
from qwenimage_training.callbacks import Callback
from qwenimage_training.run import run
from qwenimage_training.settings import read_config, validated

class Poison(Callback):
    def on_step(self, report, trainer):  # of the first process, and so in that alone
        if report.step == 4:
            trainer.pipe.components["transformer"][0].module.img_in.bias.data.fill_(float("nan"))

run(validated(read_config(sys.argv[1])), callbacks=[Poison()])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "options"), [("ddp", {}), ("fsdp2", FULL)], ids=["ddp-lora", "fsdp2-full"]
)
def test_two_processes_equal_one(make_arguments, folder: Path, tmp_path: Path, engine: str, options) -> None:
    options = {**STEPS, **options}
    run(make_arguments(**options, gradient_accumulation_steps=2, output_path=str(tmp_path / "one")))
    codes, said = run_two(make_arguments(**options, output_path=str(tmp_path / "two")), environment(engine))
    assert codes == [0, 0], said
    assert_same_course(tmp_path, atol=1e-6 if engine == "ddp" else 1e-4)
    if options.get("lora", True):
        pipe = QwenImagePipeline.from_pretrained(str(folder))
        pipe.load_lora(str(tmp_path / "two" / "epoch-1.safetensors"))
        pipe("a cat", height=32, width=32, num_inference_steps=1)


def assert_same_course(folder: Path, atol: float = 1e-4) -> None:
    """Of the runs `one` and `two`: equal losses and gradients in every step, and equal weights in the end.

    Where weights are shared out, sums are taken in another order, and a gradient of rounding errors alone has steps of
    either sign: 6 of at most the learning rate, almost all less.
    """
    one, two = read_log(folder / "one"), read_log(folder / "two")
    assert len(one) == len(two) == 6
    for value in ("loss", "grad_norm"):
        assert [line[value] for line in two] == pytest.approx([line[value] for line in one], rel=1e-5)
    assert [line["samples"] for line in two] == [2] * 6
    files = [load_file(folder / name / "epoch-1.safetensors") for name in ("one", "two")]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        torch.testing.assert_close(files[1][name], tensor, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_resumes_with_the_same_bits(
    make_arguments, tmp_path: Path
) -> None:
    """Under FSDP2 by the launcher, with our configuration, bfloat16 weights, their float32 copies and their average."""
    options = {**FULL, **STEPS, "ema_decay": 0.9, "mixed_precision": "bf16", "save_steps": 1, "num_epochs": 4}
    whole = make_arguments(**options, output_path=str(tmp_path / "whole"))
    codes, said = run_two(whole, environment("fsdp2"))
    assert codes == [0, 0], said
    broken = make_arguments(**options, output_path=str(tmp_path / "broken"))
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config_file("fsdp2")),
    ]
    launcher += ["--num_processes", "2", "--main_process_port", str(free_port()), "-m", "qwenimage_training"]
    output = tmp_path / "output"
    process = subprocess.Popen(
        [*launcher, "--config", written(broken)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        while not states(broken.output) and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, output.read_text()
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert states(broken.output), "there is nothing to resume"
    resumed = make_arguments(**options, output_path=str(tmp_path / "broken"), resume=True)
    codes, said = run_two(resumed, environment("fsdp2"))
    assert codes == [0, 0], said
    ends = [states(tmp_path / name)[-1] for name in ("whole", "broken")]
    for file in ("state-0-of-2.safetensors", "state-1-of-2.safetensors"):
        one, other = (load_file(end / file) for end in ends)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    shards = [load_file(ends[0] / f"state-{i}-of-2.safetensors") for i in (0, 1)]
    name = next(n for n in shards[0] if n.endswith("0.attn.to_q.weight") and n.startswith("weights/"))
    saved = load_file(tmp_path / "whole" / "step-12.safetensors")["transformer_blocks.0.attn.to_q.weight"]
    assert [shard[name].shape[0] for shard in shards] == [saved.shape[0] / 2] * 2, "nothing was shared out"
    average = torch.cat([shard[name.replace("weights/", "average/")] for shard in shards])
    assert torch.equal(average.to(torch.bfloat16), saved)


def children(pid: int) -> list[int]:
    """Processes that a process started, and waits for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_all_processes_stop_at_a_loss_that_is_not_finite(make_arguments, tmp_path: Path) -> None:
    arguments = make_arguments(**STEPS, output_path=str(tmp_path / "out"))
    codes, said = run_two(arguments, environment("ddp"), code=POISON, limit=120)
    assert 0 not in codes
    for output in said:  # also of the process whose own loss was finite
        assert "The loss is not finite in step 5" in output
        assert ".png" in output
    file = load_file(arguments.output / "epoch-0.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in file.values())
    assert not (arguments.output / "epoch-1.safetensors").exists()
