"""Options of DiffSynth-Studio's parser that do not exist here, each with what does its work."""

from __future__ import annotations

from collections.abc import Mapping

_OFFLOAD = "start with `accelerate launch --config_file` and the zero2-offload of `qwenimage engines`"
_TEMPLATES = "leave it out: the published Qwen-Image script reads it and does nothing with it"
ABSENT: Mapping[str, str] = {
    "offload_models": "train in two stages (--task sft:data_process, then sft:train): neither opens what it needs not",
    "resume_from_checkpoint": "give the saved file as a model (--model_paths), or go on to the bit with --resume",
    "quant_options": "store frozen models in eight bits with --fp8_models",
    "customized_optimizer": "leave it out: weights are trained with AdamW",
    "template_model_id_or_path": _TEMPLATES,
    "enable_lora_hot_loading": _TEMPLATES,
    "enable_model_cpu_offload": _OFFLOAD,
    "enable_optimizer_cpu_offload": _OFFLOAD,
    "cpu_offload_split_threshold": _OFFLOAD,
    "enable_tensorboard_log": "--log_with tensorboard",
    "enable_wandb_log": "--log_with wandb",
    "wandb_project": "set WANDB_PROJECT, and give --log_with wandb",
    "enable_swanlab_log": "--log_with wandb or trackio",
    "swanlab_project": "--log_with wandb or trackio",
    "enable_csv_log": "leave it out: log.jsonl has every step, always",
}
