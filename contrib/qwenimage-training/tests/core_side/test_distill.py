"""Direct distillation: the chain over all steps, in one stage and in two, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core.errors import RequestError
from qwenimage_training.encoded import encode_sample
from qwenimage_training.objectives.sft import training_sigmas
from qwenimage_training.run import make_cache, make_trainer, run

COLUMNS = "seed,rand_device,num_inference_steps,cfg_scale"


def rows(data: Path, tmp_path: Path, **columns: Any) -> dict[str, Any]:
    """Options for rows of a teacher: four steps, but for the second row, which has two."""
    given = {"seed": 5, "rand_device": "cpu", "num_inference_steps": 4, "cfg_scale": 1, **columns}
    written = [{"image": f"{i}.png", "prompt": "a cat", **given, "seed": i} for i in range(3)]
    written[1]["num_inference_steps"] = 2
    (tmp_path / "rows.json").write_text(json.dumps(written))
    return {
        "dataset_metadata_path": str(tmp_path / "rows.json"),
        "extra_inputs": COLUMNS,
        "task": "direct_distill",
        "learning_rate": 1e-3,
    }


def test_the_chain_is_that_of_few_steps(make_arguments, data: Path, tmp_path: Path) -> None:
    """Against the chain written out with the velocity alone."""
    trainer = make_trainer(make_arguments(**rows(data, tmp_path)))
    sample = trainer.planner.plan(trainer.dataset[1], "row")
    found = trainer.module([sample])
    assert sample.plan.seeds == (1,)
    noise = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    # (1, Z, h, w) -> (1, h/2, w/2, Z, 2, 2) -> tokens
    x = noise.reshape(1, 16, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 12, 64)
    encoded = encode_sample(sample, dtype=torch.float32, device=torch.device("cpu"))
    sigmas = [*training_sigmas(2), 0.0]
    for step in range(2):
        [v] = trainer.module._velocity["model"]([encoded], [x], [sigmas[step]], step)
        x = x + v * (sigmas[step + 1] - sigmas[step])
    expected = (x - encoded.target_1NC).square().mean()
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.module.trainable().values())


def test_published_noise_levels_of_four_steps() -> None:
    assert training_sigmas(4) == pytest.approx([1, 0.7776, 0.4708, 0.02], abs=5e-5)


def test_samples_of_a_batch_keep_to_their_own_steps(make_arguments, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_arguments(**rows(data, tmp_path)))
    samples = [trainer.planner.plan(trainer.dataset[i], f"row {i}") for i in range(3)]
    alone = torch.cat([trainer.module([sample]) for sample in samples])
    torch.testing.assert_close(trainer.module(samples), alone, rtol=1e-5, atol=0)


def test_two_stages_give_the_same_bits(make_arguments, data: Path, tmp_path: Path) -> None:
    options = rows(data, tmp_path) | {"num_epochs": 2}
    run(make_arguments(**options, output_path=str(tmp_path / "whole")))
    cache = str(tmp_path / "cache")
    make_cache(make_arguments(**{**options, "task": "direct_distill:data_process"}, output_path=cache))
    del options["dataset_metadata_path"]
    second = {**options, "task": "direct_distill:train", "dataset_base_path": cache}
    run(make_arguments(**second, output_path=str(tmp_path / "split")))
    whole, split = (load_file(tmp_path / name / "epoch-1.safetensors") for name in ("whole", "split"))
    assert whole.keys() == split.keys()
    assert all(torch.equal(tensor, split[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("columns", "inputs", "said"),
    [
        ({}, "num_inference_steps", "no seed"),
        ({"cfg_scale": 4}, COLUMNS, "cfg_scale 4"),
        ({"negative_prompt": "x"}, "seed,negative_prompt", "no use for"),
    ],
)
def test_what_a_student_cannot_use_is_said(
    make_arguments, data: Path, tmp_path: Path, columns: dict, inputs: str, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        run(make_arguments(**{**rows(data, tmp_path, **columns), "extra_inputs": inputs}))
    assert said in str(caught.value)
