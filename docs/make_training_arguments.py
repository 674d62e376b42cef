"""Write docs/training-arguments.md from the settings of `qwenimage train`: `python docs/make_training_arguments.py`.
A test holds the page to them, and runs its commands at tiny size."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from qwenimage_training.absent import ABSENT
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.cli import train

PAGE = Path(__file__).with_name("training-arguments.md")
# Those of DiffSynth-Studio's parser; everything else is ours.
PUBLISHED = frozenset(
    {
        *(
            "dataset_base_path",
            "dataset_metadata_path",
            "dataset_repeat",
            "dataset_num_workers",
            "data_file_keys",
        ),
        *("height", "width", "max_pixels", "model_paths", "model_id_with_origin_paths", "tokenizer_path"),
        *("processor_path", "extra_inputs", "fp8_models", "initialize_model_on_cpu", "zero_cond_t", "task"),
        *("trainable_models", "learning_rate", "num_epochs", "weight_decay", "find_unused_parameters"),
        *("gradient_accumulation_steps", "use_gradient_checkpointing", "use_gradient_checkpointing_offload"),
        *("lora_base_model", "lora_target_modules", "lora_rank", "lora_checkpoint", "preset_lora_path"),
        *("preset_lora_model", "output_path", "remove_prefix_in_ckpt", "save_steps"),
    }
)
ENTRIES = {
    "transformer": "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors",
    "text encoder": "Qwen/Qwen-Image:text_encoder/model*.safetensors",
    "vae": "Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors",
}
FILES = "models/vae/diffusion_pytorch_model.safetensors", "models/text_encoder/model.safetensors"
IDS = ",".join(ENTRIES.values())
SHORT = "qwenimage train --recipe qwen-image --mode lora --dataset_base_path data --lora_rank 4 --max_train_steps 2"

# Run by the test in this order, in one folder. Each shows the arguments that it names.
COMMANDS: dict[str, str] = {
    "published": f"""qwenimage train --dataset_base_path data --dataset_metadata_path data/metadata.json
        --dataset_repeat 1 --dataset_num_workers 1 --data_file_keys image,context_image --extra_inputs context_image
        --max_pixels 4096 --model_id_with_origin_paths "{IDS}" --learning_rate 1e-4 --num_epochs 1 --weight_decay 0.01
        --gradient_accumulation_steps 2 --lora_base_model dit --lora_target_modules to_q,to_k,to_v --lora_rank 4
        --use_gradient_checkpointing --find_unused_parameters --initialize_model_on_cpu --zero_cond_t --task sft
        --remove_prefix_in_ckpt pipe.dit. --save_steps 2 --output_path out/published --max_train_steps 1
        --processor_path models/processor""",
    "files": f"""qwenimage train --dataset_base_path data --height 48 --width 64 --max_train_steps 1
        --model_paths '["{FILES[0]}", ["{FILES[1]}"]]'
        --tokenizer_path models/tokenizer
        --model_id_with_origin_paths "{ENTRIES["transformer"]}" --fp8_models "{FILES[0]}"
        --trainable_models dit.transformer_blocks.1 --use_gradient_checkpointing_offload --output_path out/files""",
    "go on": f"""{SHORT} --lora_target_modules to_q,to_k,to_v --lora_checkpoint out/published/step-2.safetensors
        --lora_trigger heart --lora_alpha 8 --output_path out/goon""",
    "preset": f"""{SHORT} --preset_lora_path out/goon/step-2.safetensors --preset_lora_model dit
        --output_path out/preset""",
    "course": f"""{SHORT} --batch_size 2 --seed 1 --lr_scheduler cosine --lr_warmup_steps 1 --max_grad_norm 1
        --ema_decay 0.9 --cache_encoded 0.5 --bf16_timesteps --save_steps 1 --save_total_limit 1 --save_state
        --mixed_precision bf16 --master_weights --activation gelu_tanh --output_path out/course""",
    "resume": f"""{SHORT} --batch_size 2 --seed 1 --lr_scheduler cosine --lr_warmup_steps 1 --max_grad_norm 1
        --ema_decay 0.9 --bf16_timesteps --mixed_precision bf16 --resume --max_train_steps 3
        --output_path out/course""",
    "data": f"""{SHORT} --max_pixels 4096 --buckets --bucket_step 16 --bucket_max_aspect 2 --bucket_enlarge 1.5
        --data_file_keys image,context_image --extra_inputs context_image --aligned_fields context_image
        --condition_fields context_image --caption_dropout 0.2 --condition_dropout 0.2 --output_path out/data""",
    "looking in": f"""{SHORT} --validation_steps 2 --validation_prompts "a cat" --validation_rows 1
        --validation_inference_steps 1 --validation_cfg_scale 1 --plugin plugin.py --output_path out/looking""",
    "logs": f"{SHORT} --log_with tensorboard,wandb,trackio --output_path out/logs",
    "print": f"{SHORT} --model models --print_config > run.yaml",
    "config": "qwenimage train --config run.yaml --dry_run --no_measure --json",
    "first stage": f"""qwenimage train --dataset_base_path data --output_path cache --overwrite_cache
        --model_id_with_origin_paths "{ENTRIES["text encoder"]},{ENTRIES["vae"]}" --task sft:data_process""",
}
# What is not run with the others: where it is.
ELSEWHERE = {"logs": "contrib/qwenimage-training/tests/core_side/test_trackers.py"}

# What can be trained, and how. Where the test does not run a row itself, it is one of docs/models.md, run by
# tests/recipes/test_training.py, or it is run where the last column says.
RECIPE_ROWS = (
    ("full", "qwen-image", "full"),
    ("LoRA", "qwen-image", "lora"),
    ("editing, one picture", "qwen-image-edit", "lora"),
    ("editing, several pictures", "qwen-image-edit-2511", "lora"),
    ("ControlNet from a checkpoint", "blockwise-controlnet-canny", "full"),
    ("ControlNet for inpainting from a checkpoint", "blockwise-controlnet-inpaint", "full"),
    ("EliGen", "eligen", "lora"),
    ("EliGen-Poster, from the LoRA of EliGen-V2", "eligen-poster", "lora"),
    ("In-Context Control, from its LoRA", "in-context-control-union", "lora"),
    ("Layered", "qwen-image-layered", "lora"),
    ("Layered-Control", "qwen-image-layered-control", "lora"),
    ("direct distillation", "qwen-image-distill-lora", "lora"),
)
DISTILL = """--data_file_keys image --extra_inputs seed,rand_device,num_inference_steps,cfg_scale --height 48 --width 64
        --lora_base_model dit --lora_target_modules to_q --lora_rank 4"""
MODES: dict[str, str] = {
    "differential LoRA": COMMANDS["preset"],
    "FP8 storage": f"""{SHORT} --fp8_models "{IDS}" --output_path out/fp8""",
    "two stages": COMMANDS["first stage"]
    + f""" && qwenimage train --dataset_base_path cache --output_path out/second --task sft:train
        --model_id_with_origin_paths "{ENTRIES["transformer"]}" --lora_base_model dit --lora_target_modules to_q
        --lora_rank 4""",
    "distillation in two stages": f"""qwenimage train --dataset_base_path data --output_path distilled
        --model_id_with_origin_paths "{ENTRIES["text encoder"]},{ENTRIES["vae"]}" {DISTILL}
        --task direct_distill:data_process && qwenimage train --dataset_base_path distilled --output_path out/distilled
        --model_id_with_origin_paths "{ENTRIES["transformer"]}" --lora_base_model dit --lora_target_modules to_q
        --lora_rank 4 --task direct_distill:train""",
    "ControlNet from nothing": f"""qwenimage controlnet new --model models -o new.safetensors && qwenimage train
        --dataset_base_path data --model_id_with_origin_paths "{IDS}" --model_paths '["new.safetensors"]'
        --data_file_keys image,blockwise_controlnet_image --extra_inputs blockwise_controlnet_image
        --learning_rate 1e-3 --trainable_models blockwise_controlnet
        --remove_prefix_in_ckpt pipe.blockwise_controlnet.models.0. --max_train_steps 1 --output_path out/net""",
    "looking at a dataset": "qwenimage dataset check data --model models --sheet sheet.png",
    "looking at a LoRA": """qwenimage validate --recipe qwen-image --lora out/goon/step-2.safetensors --width 64
        --height 48 --num-inference-steps 1 -o drawn.png""",
}

HEAD = """# Arguments of training

Made from the settings of `qwenimage train` by `python docs/make_training_arguments.py`; do not edit. A test runs the
commands of this page, on tiny files in the layout of the hub: in `data` pictures with a `metadata.json`, in `models` a
model. [contrib/qwenimage-training](../contrib/qwenimage-training/README.md) says what they are good for.

A published argument has the name, the default and the meaning that it has in DiffSynth-Studio. All of them can stand in
a config file as well (`--config`), and `--no_NAME` takes back a switch that something else has turned on.
"""
ARGUMENTS = """## Arguments

The last column names a command below that shows it."""
SHOWN = """## Commands of the arguments"""
MODES_HEAD = """## Modes

The commands with `--recipe` alone take their settings from the recipe; give them `--dataset_base_path` and whatever
else is yours. [models.md](models.md) has all of them, for every model, and how each result is validated."""
ABSENT_HEAD = """## Published arguments that do not exist here

They are refused with these words. None is in the published list of arguments for Qwen-Image but `quant_options`."""


def page() -> str:
    recipe_rows = [
        (what, f"`qwenimage train --recipe {name} --mode {mode}`") for what, name, mode in RECIPE_ROWS
    ]
    parts = [
        HEAD.strip(),
        ARGUMENTS,
        _table(("argument", "whose", "default", "meaning", "shown by"), arguments()),
        SHOWN,
        *(f"**{name}**\n\n{_block(command)}" for name, command in COMMANDS.items()),
        MODES_HEAD,
        _table(("what", "command"), recipe_rows),
        *(f"**{name}**\n\n{_block(command)}" for name, command in MODES.items()),
        ABSENT_HEAD,
        _table(("argument", "instead"), [(f"`--{name}`", _cell(text)) for name, text in ABSENT.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def arguments() -> list[tuple[str, ...]]:
    """A row for each argument: those of the settings, then those of the command itself."""
    rows = []
    for name, field in TrainingArguments.model_fields.items():
        whose = "published" if name in PUBLISHED else "ours"
        rows.append(
            (f"`--{name}`", whose, _default(field.default), _cell(field.description or ""), shown_by(name))
        )
    for parameter in inspect.signature(train, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            option: Any = parameter.annotation.__metadata__[0]
            written = option.default.removeprefix("--")
            rows.append(
                (f"`--{written}`", "ours", _default(parameter.default), _cell(option.help), shown_by(written))
            )
    return rows


def shown_by(name: str) -> str:
    """The first command with this option; an error if there is none."""
    return next(title for title, command in COMMANDS.items() if f"--{name}" in command.split())


def _default(value: Any) -> str:
    if value is None or value in ([], ""):
        return "none"
    return f"`{_cell(str(value))}`" if not isinstance(value, bool) else "on" if value else "off"


def _block(command: str) -> str:
    """Lines as they are pasted into a shell."""
    lines = [line.strip() for line in command.replace(" && ", "\n&& ").splitlines()]
    return "```text\n" + " \\\n  ".join(lines) + "\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
