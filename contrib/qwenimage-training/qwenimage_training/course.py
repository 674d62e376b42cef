"""What decides the course of a run: a state is resumed only where all of it is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qwenimage_training.arguments import TrainingArguments

# A run may go on with other values of these: they say where things are, how far the run goes, what is looked at on the
# way, and how memory is saved.
FREE = frozenset(
    {
        "resume",
        "output_path",
        "save_steps",
        "save_total_limit",
        "save_state",
        "num_epochs",
        "max_train_steps",
        "dataset_base_path",
        "dataset_metadata_path",
        "dataset_num_workers",
        "find_unused_parameters",
        "plugin",
        "use_gradient_checkpointing",
        "use_gradient_checkpointing_offload",
        "initialize_model_on_cpu",
        "cache_encoded",
        "log_with",
        "validation_steps",
        "validation_prompts",
        "validation_inference_steps",
        "validation_cfg_scale",
        "lora_checkpoint",
        "lora_trigger",
        "model",
        "model_paths",
        "tokenizer_path",
        "processor_path",
    }
)


def facts(
    arguments: TrainingArguments, dataset: str, processes: int, engine: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Everything else by name, with the digest of the rows and what computes them."""
    chosen = arguments.model_dump(mode="json", exclude=set(FREE))
    return {**chosen, "dataset": dataset, "processes": processes, "engine": engine, "dtype": str(dtype)}
