"""Writes a training folder's parts as one model in hub layout: what the wheel carries.

Weights are float16. The scheduler and the image processor have the published settings.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .checkpoint import load_state
from .train_transformer import CONFIG, build_transformer

MODEL_INDEX = {
    "_class_name": "QwenImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
DEFAULTS = {
    "height": 128,
    "width": 128,
    "num_inference_steps": 20,
}  # of a request; 128 is the only size it knows
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
IMAGE_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}


def export(training: Path, target: Path) -> None:
    """Copy tokenizer, text encoder and VAE from `training`/model, and write the averaged transformer beside them."""
    state = load_state(training / "transformer_state.pt")
    average = state["average"] if state else build_transformer().state_dict()
    for part in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(training / "model" / part, target / part, dirs_exist_ok=True)
    shutil.copytree(target / "tokenizer", target / "processor", dirs_exist_ok=True)
    _write_json(target / "processor" / "preprocessor_config.json", IMAGE_PROCESSOR)
    _write_json(target / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(target / "model_index.json", MODEL_INDEX)
    _write_json(target / "defaults.json", DEFAULTS)
    _write_json(target / "transformer" / "config.json", transformer_config())
    tensors = {name: value.half().contiguous() for name, value in average.items()}
    _save(tensors, target / "transformer" / "diffusion_pytorch_model.safetensors")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # the writer makes them private, which an installed package must not be


def transformer_config() -> dict[str, Any]:
    """The transformer's config.json: the published keys only, for the published class reads it too."""
    values = asdict(CONFIG)
    values.pop("activation")  # gelu_tanh is what the published class has
    return {"_class_name": "QwenImageTransformer2DModel", **values}


def transformer_from(folder: Path) -> dict[str, torch.Tensor]:
    """The exported transformer's tensors in float32."""
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return {name: value.float() for name, value in tensors.items()}


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a training folder's parts as one model in hub layout."
    )
    parser.add_argument("training", type=Path, help="the training folder")
    parser.add_argument("target", type=Path, help="the model's folder")
    arguments = parser.parse_args()
    export(arguments.training, arguments.target)


if __name__ == "__main__":
    main()
