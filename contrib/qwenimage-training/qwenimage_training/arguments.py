"""Everything that can be said about a training run, as one flat set of options.

Published options come first, under their published names, defaults and meanings; those of the dataset are in
data/arguments.py. A value that could not act is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from qwenimage_training.data.arguments import DataArguments, names

STAGES = ("data_process", "train")
PUBLISHED_TARGETS = "q,k,v,o,ffn.0,ffn.2"


class TrainingArguments(DataArguments):
    """The options of `qwenimage train`; the fields of its config file; what training_args.json records."""

    # --- published: models
    model_paths: str | None = Field(
        None,
        description="JSON list of local model files; an item that is a list holds the shards of one model",
    )
    model_id_with_origin_paths: str | None = Field(
        None, description="comma list of ORG/NAME:FILE-PATTERN on a hub"
    )
    tokenizer_path: str | None = Field(None, description="local tokenizer folder")
    processor_path: str | None = Field(None, description="local processor folder")
    extra_inputs: str | None = Field(None, description="comma list of the columns that become request fields")
    fp8_models: str | None = Field(
        None, description="comma list of model entries whose frozen weights are stored in eight bits"
    )
    initialize_model_on_cpu: bool = Field(
        False, description="read trained models into main memory before moving them"
    )
    zero_cond_t: bool = Field(False, description="modulate condition pictures at time zero (Edit-2511)")

    # --- published: training
    task: str = Field(
        "sft",
        description="what is learnt: sft (flow matching) or direct_distill (few steps); with :data_process "
        "the encoders alone run, with :train training goes on from what they gave",
    )
    trainable_models: str | None = Field(
        None, description="comma list of models trained in full, such as dit"
    )
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate")
    num_epochs: int = Field(1, ge=1, description="passes over the dataset")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    find_unused_parameters: bool = Field(
        False, description="let processes differ in which weights got a gradient"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="batches that are summed up to one optimizer step"
    )
    use_gradient_checkpointing: bool = Field(False, description="compute blocks again in the backward pass")
    use_gradient_checkpointing_offload: bool = Field(
        False, description="as use_gradient_checkpointing, what is kept waits in main memory"
    )

    # --- published: LoRA
    lora_base_model: str | None = Field(None, description="the model that gets a LoRA, such as dit")
    lora_target_modules: str = Field(
        PUBLISHED_TARGETS,
        description="comma list of the ends of layer names; empty: every large linear layer of the blocks",
    )
    lora_rank: int = Field(32, ge=1, description="rank of the LoRA")
    lora_checkpoint: str | None = Field(None, description="LoRA file to start from")
    preset_lora_path: str | None = Field(
        None, description="LoRA file that is added to the weights before training"
    )
    preset_lora_model: str | None = Field(None, description="the model that preset_lora_path belongs to")

    # --- published: output
    output_path: str = Field("./models", description="folder for weights, logs and what a resume needs")
    remove_prefix_in_ckpt: str = Field("pipe.dit.", description="taken off the names of saved tensors")
    save_steps: int | None = Field(
        None, ge=1, description="save every so many batches (default: every epoch)"
    )

    # --- ours: models
    model: str | None = Field(None, description="hub id, folder in hub layout, or an installed model (tiny)")
    plugin: list[str] = Field([], description="a plugin in a single file (may be repeated)")
    activation: Literal["gelu_tanh", "quick_gelu"] | None = Field(
        None,
        description="GELU that the model's weights were trained with (default: the recipe's, else gelu_tanh)",
    )
    mixed_precision: Literal["no", "bf16"] | None = Field(
        None, description="bf16: weights and arithmetic in bfloat16; no: float32 (default: bf16, on a CPU no)"
    )
    master_weights: bool = Field(
        True, description="trained bfloat16 weights have a float32 copy that is stepped"
    )

    # --- ours: training
    cache_encoded: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes of encoded samples that each process keeps in memory for later epochs",
    )
    overwrite_cache: bool = Field(
        False, description="make the cache of a data_process task again where its inputs have changed"
    )
    batch_size: int = Field(1, ge=1, le=4096, description="samples of a batch, in each process")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of shuffling, noise, dropout and fresh LoRA weights"
    )
    max_train_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps")
    lr_scheduler: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="course of the learning rate after warm-up"
    )
    lr_warmup_steps: int = Field(
        0, ge=0, description="optimizer steps in which the learning rate rises to its value"
    )
    max_grad_norm: float | None = Field(None, gt=0, description="longer gradients are shortened to this norm")
    lora_alpha: float | None = Field(
        None, gt=0, description="scale of the LoRA times its rank (default: the rank)"
    )
    lora_trigger: str | None = Field(None, description="word that calls the LoRA, noted in its file")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="save an average of the weights over steps instead of the last ones"
    )
    bf16_timesteps: bool = Field(False, description="round timesteps to bfloat16, as DiffSynth-Studio does")
    log_with: str | None = Field(
        None, description="comma list of logs beside log.jsonl: tensorboard, wandb, trackio"
    )
    validation_steps: int | None = Field(
        None, ge=1, description="look every so many steps: draw validation_prompts, judge validation_rows"
    )
    validation_prompts: str | None = Field(
        None, description="a prompt, or a .txt file with one a line, drawn with fixed seeds"
    )
    validation_rows: str | None = Field(
        None, description="rows to judge: so many that the dataset loses at its end, or a metadata file"
    )
    validation_inference_steps: int = Field(20, ge=1, description="steps of the pictures of a validation")
    validation_cfg_scale: float = Field(4.0, ge=1, description="guidance of the pictures of a validation")
    save_total_limit: int | None = Field(None, ge=1, description="keep only the newest saved files")
    save_state: bool = Field(True, description="keep what an exact resume needs beside the newest saved file")
    resume: bool = Field(False, description="go on where the run in output_path stopped")

    @field_validator("model_paths", mode="before")
    @classmethod
    def _paths_as_text(cls, value: Any) -> Any:
        """A config file may write the list itself."""
        return json.dumps(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _training_values_can_act(self) -> Self:
        given = self.model_fields_set
        if (self.preset_lora_path is None) != (self.preset_lora_model is None):
            raise ValueError("preset_lora_path and preset_lora_model belong together: give both, or neither")
        if not self.lora_base_model and (idle := sorted(given & LORA_ONLY)):
            raise ValueError(
                f"{', '.join(idle)} do nothing without lora_base_model: give it (dit), or leave them out"
            )
        if self.save_steps and self.save_steps % self.gradient_accumulation_steps:
            raise ValueError(
                f"save_steps counts batches, and weights change every {self.gradient_accumulation_steps} of them: "
                "make it a multiple of gradient_accumulation_steps"
            )
        if self.stage not in ("", *STAGES):
            raise ValueError(
                f"task {self.task!r} has no such stage: it is {self.objective}, or {self.objective}:"
                + f" or {self.objective}:".join(STAGES)
            )
        if self.overwrite_cache and self.stage != STAGES[0]:
            raise ValueError(f"overwrite_cache does nothing without the task {self.objective}:{STAGES[0]}")
        if self.resume and self.stage == STAGES[0]:
            raise ValueError("resume is for training: a cache goes on where it stopped by itself")
        looked_at = self.validation_prompts or self.validation_rows
        if bool(self.validation_steps) != bool(looked_at):
            raise ValueError(
                "validation_steps says when, validation_prompts and validation_rows what to look at: give both sides"
            )
        if self.resume and not self.save_state:
            raise ValueError("resume needs the state that save_state keeps: leave one of them out")
        if self.model_paths is not None:
            self.local_models  # noqa: B018  checked here, so that a fault is named with the option
        return self

    @property
    def local_models(self) -> list[str | list[str]]:
        """`model_paths` as a list of files or lists of shards."""
        if self.model_paths is None:
            return []
        try:
            found = json.loads(self.model_paths)
        except ValueError as error:
            raise ValueError(f"model_paths is no JSON list: {error}") from error
        if not isinstance(found, list) or not all(
            isinstance(p, str) or (isinstance(p, list) and all(isinstance(q, str) for q in p)) for p in found
        ):
            raise ValueError("model_paths is a JSON list of files, or of lists of shards")
        return found

    @property
    def trained(self) -> tuple[str, ...]:
        return names(self.trainable_models)

    @property
    def inputs(self) -> tuple[str, ...]:
        return names(self.extra_inputs)

    @property
    def output(self) -> Path:
        return Path(self.output_path).expanduser()

    @property
    def objective(self) -> str:
        """The task without its stage."""
        return self.task.partition(":")[0]

    @property
    def stage(self) -> str:
        """`data_process`, `train`, or nothing: both at once."""
        return self.task.partition(":")[2]

    @property
    def checkpointing(self) -> bool:
        return self.use_gradient_checkpointing or self.use_gradient_checkpointing_offload

    @property
    def alpha(self) -> float:
        return float(self.lora_rank if self.lora_alpha is None else self.lora_alpha)


LORA_ONLY = frozenset({"lora_checkpoint", "lora_alpha", "lora_trigger", "lora_rank", "lora_target_modules"})
