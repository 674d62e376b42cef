"""The accelerator of a run. What the launcher's configuration says and what the options say must agree: accelerate and
DeepSpeed would take the one and leave the other, without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

from qwenimage_training.errors import TrainingError
from qwenimage_training.opening import dtype_of

if TYPE_CHECKING:
    from qwenimage_training.arguments import TrainingArguments

CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def make_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Joins the other processes. TrainingError where launcher and options disagree."""
    handlers: list[Any] = [
        DistributedDataParallelKwargs(find_unused_parameters=arguments.find_unused_parameters)
    ]
    plugin = _deepspeed(arguments) if _is_set("ACCELERATE_USE_DEEPSPEED") else None
    bf16 = plugin is not None and _says_bf16(arguments)
    if plugin is not None and not torch.cuda.is_available():
        handlers.append(
            InitProcessGroupKwargs(backend="gloo")
        )  # accelerate has no CPU for DeepSpeed by itself
    # Precision is that of the weights; only DeepSpeed must be told, because it makes its own copies of them.
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", deepspeed_plugin=plugin, kwargs_handlers=handlers
    )
    check_launcher(arguments, str(dtype_of(arguments, accelerator.device)).removeprefix("torch."))
    return accelerator


def is_fsdp() -> bool:
    """Whether the launcher asks for FSDP2. FSDP1 is refused."""
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise TrainingError(
            "The accelerate configuration asks for the first FSDP.",
            got=f"fsdp_version: {version}",
            expected="fsdp_version: 2",
            mend="take the file that `qwenimage engines fsdp2` names",
        )
    return True


def check_launcher(arguments: TrainingArguments, dtype: str) -> None:
    """TrainingError for a value that the launcher sets otherwise than the options do. `dtype` is that of the weights.
    The launcher's `no` for precision is what it says unasked, and so says nothing."""
    said = launcher_values()
    wanted = {
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "gradient_clipping": arguments.max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": arguments.batch_size,
        "mixed_precision": {"bfloat16": "bf16", "float32": "no"}[dtype],
    }
    options = {
        "gradient_clipping": "max_grad_norm",
        "train_micro_batch_size_per_gpu": "batch_size",
    }
    for name, value in said.items():
        if value != wanted[name]:
            option = options.get(name, name)
            given = getattr(arguments, option)
            raise TrainingError(
                f"The accelerate configuration and --{option} disagree.",
                got=f"{name}: {value} in the configuration",
                expected=f"--{option} {given if given is not None else f'(not given: {wanted[name]})'}",
                mend="say the same in both, or leave it out of the configuration",
            )


def launcher_values() -> dict[str, Any]:
    """What the launcher sets of the values that the options set too."""
    found: dict[str, Any] = {}
    environment = os.environ.get
    precision = environment("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no":
        found["mixed_precision"] = precision
    if text := environment("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        found["gradient_accumulation_steps"] = text if text == "auto" else int(text)
    if text := environment("ACCELERATE_GRADIENT_CLIPPING"):
        found["gradient_clipping"] = text if text in ("auto", "none") else float(text)
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        found |= _deepspeed_values()
    return {name: value for name, value in found.items() if value not in ("auto", "none")}


def _deepspeed_values() -> dict[str, Any]:
    """The same in a DeepSpeed JSON file, where the configuration names one."""
    if not (path := os.environ.get(CONFIG_FILE)):
        return {}
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    names = ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu")
    found = {name: config[name] for name in names if name in config}
    enabled = [kind for kind in ("bf16", "fp16") if config.get(kind, {}).get("enabled") is True]
    return found | ({"mixed_precision": enabled[0]} if enabled else {})


def _deepspeed(arguments: TrainingArguments) -> DeepSpeedPlugin:
    """The launcher's DeepSpeed configuration, with the values of the options where it leaves them open."""
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            "The accelerate configuration asks for DeepSpeed, which is not installed.",
            mend='pip install "qwenimage-training[deepspeed]"',
        ) from error
    plugin = DeepSpeedPlugin()
    plugin.deepspeed_config |= {
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "gradient_clipping": arguments.max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": arguments.batch_size,
        "train_batch_size": "auto",
        # torch's AdamW, as everywhere: DeepSpeed's own for offloading needs a compiler on every machine
        "zero_force_ds_cpu_optimizer": False,
    }
    return plugin


def _says_bf16(arguments: TrainingArguments) -> bool:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return dtype_of(arguments, device) == torch.bfloat16


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
