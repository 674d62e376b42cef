"""The published two runs of differential training: the first LoRA goes into the weights, the second is trained on
them and saved alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from qwenimage_core import QwenImagePipeline
from qwenimage_training.run import make_trainer, run


def test_two_runs_and_the_second_lora_alone(make_arguments, folder: Path, tmp_path: Path) -> None:
    first = run(make_arguments(output_path=str(tmp_path / "deterministic"), learning_rate=1e-2))
    preset = tmp_path / "deterministic" / "epoch-0.safetensors"
    options = {
        "preset_lora_path": str(preset),
        "preset_lora_model": "dit",
        "output_path": str(tmp_path / "differencial"),
        "learning_rate": 1e-2,
    }
    trainer = make_trainer(make_arguments(**options))
    sample = trainer.planner.plan(trainer.dataset[0], "row")
    layer = "transformer_blocks.0.attn.to_q"
    base = QwenImagePipeline.from_pretrained(str(folder), device="cpu", torch_dtype=torch.float32)
    weight = base.components["transformer"][0].module.get_submodule(layer).weight
    fused = trainer.pipe.components["transformer"][0].module.get_submodule(layer).base_layer.weight.clone()
    assert not torch.equal(fused, weight)
    # before the second LoRA has learnt anything, the model is the first run's
    ours = trainer.module([sample])
    theirs = first.module([first.planner.plan(first.dataset[0], "row")])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    trainer.train()
    kept = trainer.pipe.components["transformer"][0].module.get_submodule(layer).base_layer.weight
    assert torch.equal(kept, fused)
    second = load_file(tmp_path / "differencial" / "epoch-0.safetensors")
    one = load_file(preset)
    assert second.keys() == one.keys()
    assert {name: t.shape for name, t in second.items()} == {name: t.shape for name, t in one.items()}
    name = next(n for n in second if layer in n and ("lora_B" in n or "lora_up" in n))
    difference = second[name] - one[name]
    assert float(difference.abs().max()) > 1e-3
    base.load_lora(tmp_path / "differencial" / "epoch-0.safetensors")
