"""Training a LoRA on the embedded model beside DiffSynth-Studio's trainer: the same work, encoded samples in memory.

Both sides run their own whole loop (theirs is `launch_training_task`, ours `Trainer.train`) on the same eight rows,
batch 1, LoRA of rank 16 on the twelve published layers of each block, AdamW, float32, the same activation, no
checkpointing of gradients; only writing the weights at the end is left out. By the clock on the wall, on all cores,
as users run it. Then our samples a second at batch 8 over batch 1, and the memory that each side takes at most, each
in its own process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timing import compare, finish, machine, report

from qwenimage_core.latents import unpack
from qwenimage_core.models.transformer_config import TransformerConfig
from qwenimage_tiny import model_path
from qwenimage_tiny.render import render
from qwenimage_tiny.scenes import sample_scene
from qwenimage_training.encoded import encode_sample
from qwenimage_training.run import make_trainer
from qwenimage_training.settings import TARGETS, merged, validated
from qwenimage_training.trainer import Trainer

ENCODED = "encoded.safetensors"
ROWS, STEPS, RANK, RATE = 8, 40, 16, 1e-4
SPEED, BATCHED, MEMORY = 1 / 1.3, 1 / 3, 1.0  # targets


def make_data(folder: Path) -> None:
    rng, rows = random.Random(0), []
    for number in range(ROWS):
        pixels = ((render(sample_scene(rng)) + 1) * 127.5).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": "a red circle on a blue background"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def our_trainer(folder: Path, batch: int) -> Trainer:
    values = {
        "model": str(model_path()),
        "dataset_base_path": str(folder),
        "output_path": str(folder / f"out-{batch}"),
        "lora_rank": RANK,
        "learning_rate": RATE,
        "batch_size": batch,
        "use_gradient_checkpointing": False,
        "num_epochs": 10_000,
        "save_state": False,
    }
    trainer = make_trainer(validated({**merged("lora", None, {}, {}), **values}))
    trainer.save = lambda name: None  # type: ignore[method-assign]
    return trainer


def ours(folder: Path, batch: int) -> Callable[[], None]:
    """Make STEPS steps; the first call encodes all rows as well."""
    trainer = our_trainer(folder, batch)

    def run() -> None:
        trainer.batches = trainer.steps = 0
        trainer.arguments = trainer.arguments.model_copy(update={"max_train_steps": STEPS})
        trainer.train()

    return run


def encode_rows(folder: Path) -> None:
    """What the peer's units would make of the rows, from our encoders: the first half is not what is measured."""
    trainer = our_trainer(folder, 1)
    tensors = {}
    for number in range(ROWS):
        sample = trainer.planner.plan(trainer.dataset[number], "row")
        encoded = encode_sample(sample, dtype=torch.float32, device=torch.device("cpu"))
        tensors[f"{number}.latents"] = unpack(encoded.target_1NC, sample.plan.grid)[:, 0].contiguous()
        tensors[f"{number}.text"] = encoded.inputs.texts[0].contiguous()
    save_file(tensors, folder / ENCODED)


def theirs(folder: Path) -> Callable[[], None]:
    """The same for DiffSynth-Studio: the second half of its split training, with the first half's results in a list."""
    import accelerate
    from diffsynth.diffusion.logger import ModelLogger
    from diffsynth.diffusion.loss import FlowMatchSFTLoss
    from diffsynth.diffusion.runner import launch_training_task
    from diffsynth.diffusion.training_module import DiffusionTrainingModule
    from diffsynth.pipelines.qwen_image import QwenImagePipeline

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.parity.peers import diffsynth_transformer, tanh_gelu

    class Module(DiffusionTrainingModule):
        """As in its train.py, with `sft:train` as the task."""

        def __init__(self, pipe: Any) -> None:
            super().__init__()
            self.pipe = pipe
            self.switch_pipe_to_training_mode(
                pipe, lora_base_model="dit", lora_target_modules=",".join(TARGETS), lora_rank=RANK
            )

        def forward(self, data: Any, inputs: Any = None) -> Any:
            inputs = self.transfer_data_to_device(inputs, self.pipe.device, self.pipe.torch_dtype)
            for unit in self.pipe.units:
                inputs = self.pipe.unit_runner(unit, self.pipe, *inputs)
            shared, positive, _ = inputs
            return FlowMatchSFTLoss(self.pipe, **shared, **positive)

    class Encoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
        load_from_cache = True

        def __init__(self, items: list[Any], length: int) -> None:
            self.items, self.length = items, length

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, index: int) -> Any:
            return self.items[index % len(self.items)]

    class Logger(ModelLogger):
        def save_model(self, *_: Any) -> None: ...

    pipe = QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
    config = json.loads((model_path() / "transformer" / "config.json").read_text())
    pipe.dit = diffsynth_transformer(TransformerConfig.from_dict(config))
    pipe.dit.load_state_dict(load_file(next((model_path() / "transformer").glob("*.safetensors"))))
    tanh_gelu(pipe)
    pipe.units = []  # of its units, the second half of the split needs none for this model
    tensors = load_file(folder / ENCODED)
    items = [_inputs(tensors[f"{n}.latents"], tensors[f"{n}.text"]) for n in range(ROWS)]
    module = Module(pipe)

    def run() -> None:
        launch_training_task(
            accelerate.Accelerator(),
            Encoded(items, STEPS),
            module,
            Logger(str(folder / "theirs")),
            learning_rate=RATE,
            num_workers=0,
            save_steps=10**9,
        )

    return run


def _inputs(latents: torch.Tensor, text: torch.Tensor) -> Any:
    """What the peer's cache holds of a row, as far as its model reads it."""
    shared = {
        "cfg_scale": 1,
        "use_gradient_checkpointing": False,
        "use_gradient_checkpointing_offload": False,
        "edit_image_auto_resize": True,
        "zero_cond_t": False,
        "input_latents": latents,
        "height": 8 * latents.shape[-2],
        "width": 8 * latents.shape[-1],
    }
    mask = torch.ones(text.shape[:2], dtype=torch.long)
    return shared, {"prompt_emb": text, "prompt_emb_mask": mask}, {}


def peak(side: str, folder: Path) -> int:
    """Bytes that a process takes at most which does nothing but train one side."""
    command = [sys.executable, __file__, side, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout.splitlines()[-1])


def most_memory() -> int:
    """Of this process since it began: Linux counts it anew for each program, unlike `ru_maxrss`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        encode_rows(folder)
        mine, other = ours(folder, 1), theirs(folder)
        speed = compare(mine, other, rounds=7)
        whole = compare(ours(folder, 8), mine, rounds=5)
        memory = peak("ours", folder), peak("theirs", folder)
    step = [1000 * value / STEPS for value in (speed.ours, speed.theirs)]
    finish(
        report(
            "step of LoRA training, batch 1, encoded samples in memory, over DiffSynth-Studio",
            speed.ratio,
            SPEED,
            f"{step[0]:.1f} ms over {step[1]:.1f} ms: {1 / speed.ratio:.2f} times the steps a second",
        ),
        report(
            "seconds a sample, batch 8 over batch 1",
            whole.ratio / 8,
            BATCHED,
            f"{8 / whole.ratio:.2f} times the samples a second",
        ),
        report(
            "peak memory of the process over DiffSynth-Studio's",
            memory[0] / memory[1],
            MEMORY,
            f"{memory[0] / 1e6:.0f} MB over {memory[1] / 1e6:.0f} MB",
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        torch.set_num_threads(1)
        side, where = sys.argv[1], Path(sys.argv[2])
        (ours(where, 1) if side == "ours" else theirs(where))()
        print(most_memory())
