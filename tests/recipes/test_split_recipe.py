"""The published two-stage commands, as they are written but for the data and the amount of work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from safetensors import safe_open

from qwenimage_core.cli.main import main
from qwenimage_training.settings import TARGETS

from .test_training import picture

FIRST = """
train --dataset_base_path data --dataset_metadata_path data/metadata.csv --max_pixels 1048576 --dataset_repeat 1
  --model_id_with_origin_paths
    "Qwen/Qwen-Image:text_encoder/model*.safetensors,Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors"
  --learning_rate 1e-4 --num_epochs 5 --remove_prefix_in_ckpt "pipe.dit." --output_path cache
  --lora_base_model "dit" --lora_target_modules "{targets}" --lora_rank 32
  --use_gradient_checkpointing --dataset_num_workers 0 --find_unused_parameters --task "sft:data_process"
"""
SECOND = """
train --dataset_base_path cache --max_pixels 1048576 --dataset_repeat 2
  --model_id_with_origin_paths "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors"
  --learning_rate 1e-4 --num_epochs 1 --remove_prefix_in_ckpt "pipe.dit." --output_path out
  --lora_base_model "dit" --lora_target_modules "{targets}" --lora_rank 32
  --use_gradient_checkpointing --dataset_num_workers 0 --find_unused_parameters --task "sft:train"
"""


def test_the_published_split_recipe(offline: Path) -> None:
    data = offline / "data"
    data.mkdir()
    (data / "metadata.csv").write_text(f"image,prompt\n{picture(data, 'a.png')},a cat\n")
    for command in (FIRST, SECOND):
        assert main(shlex.split(command.format(targets=",".join(TARGETS)))) == 0
    assert json.loads((offline / "cache" / "manifest.json").read_text())["complete"]
    with safe_open(offline / "out" / "epoch-0.safetensors", "pt") as file:
        assert len(file.keys()) == 2 * 2 * len(TARGETS)  # two matrices, two blocks
