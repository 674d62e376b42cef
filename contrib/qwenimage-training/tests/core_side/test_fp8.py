"""Frozen models in eight bits: what is stored, what comes out, and entries that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qwenimage_core.errors import RequestError
from qwenimage_training.fp8 import STORED
from qwenimage_training.run import make_trainer


def options(folder: Path) -> dict:
    paths = [str(folder / name) for name in ("transformer", "text_encoder", "vae")]
    return {
        "model": None,
        "model_paths": json.dumps(paths),
        "tokenizer_path": str(folder / "tokenizer"),
        "mixed_precision": "bf16",
    }


def test_frozen_weights_are_stored_and_the_lora_trains_on_top(make_arguments, folder: Path) -> None:
    given = options(folder)
    every = ",".join(json.loads(given["model_paths"]))
    losses = {}
    for fp8 in (None, every):
        trainer = make_trainer(make_arguments(**given, fp8_models=fp8))
        samples = [trainer.planner.plan(trainer.dataset[i], "row") for i in range(4)]
        losses[fp8] = trainer.module(samples)
    losses[every].mean().backward()
    layer = trainer.pipe.components["transformer"][0].module.transformer_blocks[0].attn.to_q
    assert layer.base_layer.weight.dtype == STORED
    assert layer.base_layer.bias.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert layer.lora_B["default"].weight.grad.abs().max() > 0
    for kind in ("text_encoder", "vae"):
        dtypes = [p.dtype for p in trainer.pipe.components[kind][0].module.parameters()]
        assert STORED in dtypes, kind
    # three bits of mantissa: near, and not equal
    difference = ((losses[every] - losses[None]).abs() / losses[None]).detach()
    assert 0 < float(difference.max()) < 0.1


def test_entries_that_are_none_of_the_models_are_refused(make_arguments, folder: Path) -> None:
    with pytest.raises(RequestError, match="names no model of this run"):
        make_trainer(make_arguments(**options(folder), fp8_models=str(folder / "transformers")))


def test_a_model_trained_in_full_is_not_stored(make_arguments, folder: Path) -> None:
    entry = str(folder / "transformer")
    with pytest.raises(RequestError, match="nothing is frozen"):
        make_trainer(make_arguments(**options(folder), lora=False, trainable_models="dit", fp8_models=entry))
