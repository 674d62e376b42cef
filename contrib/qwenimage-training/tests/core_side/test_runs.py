"""Whole runs: full weights, what is saved when, accumulation, averages, schedules, and what stops a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.errors import RequestError
from qwenimage_training.checkpoint import states
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import make_trainer, run

DRAW = {
    "prompt": "a cat",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "seed": 3,
    "output_type": "tensor",
}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.safetensors"))


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_full_weights_are_saved_as_published_and_open_as_a_model(make_arguments, folder: Path) -> None:
    arguments = make_arguments(lora=False, trainable_models="dit", learning_rate=1e-3)
    trainer = run(arguments)
    file = arguments.output / "epoch-0.safetensors"
    published = load_file(next((folder / "transformer").glob("*.safetensors")))
    saved = load_file(file)
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in published.items()}
    assert any(not torch.equal(saved[n], published[n]) for n in saved)
    again = QwenImagePipeline.from_pretrained(
        device="cpu",
        model_configs=[
            ModelConfig(path=file),
            *(ModelConfig(path=folder / n) for n in ("text_encoder", "vae")),
        ],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
    )
    torch.testing.assert_close(again(**DRAW), trainer.pipe(**DRAW), rtol=0, atol=1e-6)


def test_the_prefix_that_is_not_taken_off_stays(make_arguments) -> None:
    arguments = make_arguments(
        lora=False, trainable_models="dit.transformer_blocks.1", remove_prefix_in_ckpt="pipe."
    )
    run(arguments)
    saved = load_file(arguments.output / "epoch-0.safetensors")
    assert {name.split(".transformer_blocks.1.")[0] for name in saved} == {"dit"}


def test_bfloat16_weights_have_float32_copies_that_are_stepped(make_arguments) -> None:
    """At a learning rate of 1e-5 most steps are below the resolution of bfloat16: without copies they are lost."""
    moved = {}
    for masters in (True, False):
        arguments = make_arguments(
            lora=False,
            trainable_models="dit",
            mixed_precision="bf16",
            learning_rate=1e-5,
            master_weights=masters,
        )
        trainer = make_trainer(arguments)
        before = {n: w.detach().float().clone() for n, w in trainer.weights.stepped.items()}
        trainer.train()
        matrix = next(n for n in before if n.endswith("0.attn.to_q.weight"))
        moved[masters] = float((trainer.weights.stepped[matrix].float() != before[matrix]).float().mean())
    assert moved[True] > 0.95
    assert moved[False] < 0.5


def test_saves_by_batches_and_keeps_the_newest(make_arguments) -> None:
    arguments = make_arguments(num_epochs=2, save_steps=4, gradient_accumulation_steps=2, save_total_limit=2)
    run(arguments)
    assert names(arguments.output) == ["step-12.safetensors", "step-8.safetensors"]
    assert [p.name for p in states(arguments.output)] == ["state-12"]
    assert json.loads((arguments.output / "training_args.json").read_text())["save_steps"] == 4


def test_the_last_step_is_saved_though_it_is_not_aligned(make_arguments) -> None:
    arguments = make_arguments(save_steps=4)
    run(arguments)
    assert names(arguments.output) == ["step-4.safetensors", "step-6.safetensors"]


def test_a_run_can_end_before_its_epochs_do(make_arguments) -> None:
    arguments = make_arguments(num_epochs=3, max_train_steps=8)
    run(arguments)
    assert names(arguments.output) == ["epoch-0.safetensors", "step-8.safetensors"]
    assert [line["step"] for line in log(arguments.output)] == list(range(1, 9))


def test_accumulated_batches_are_one_large_batch(make_arguments, tmp_path: Path) -> None:
    """One step over all six samples, as one batch and as six."""
    found = {}
    for name, options in {"batch": {"batch_size": 6}, "sum": {"gradient_accumulation_steps": 6}}.items():
        run(make_arguments(**options, output_path=str(tmp_path / name)))
        [found[name]] = log(tmp_path / name)
    assert found["batch"]["samples"] == found["sum"]["samples"] == 6
    for value in ("loss", "grad_norm"):
        assert found["batch"][value] == pytest.approx(found["sum"][value], rel=1e-5)


def test_warm_up_and_course_are_in_the_log(make_arguments) -> None:
    arguments = make_arguments(lr_scheduler="linear", lr_warmup_steps=2, learning_rate=1e-3)
    run(arguments)
    rates = [line["learning_rate"] for line in log(arguments.output)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_the_average_is_what_is_saved(make_arguments) -> None:
    arguments = make_arguments(
        lora=False, trainable_models="dit", ema_decay=0.9, learning_rate=1e-3, max_train_steps=1
    )
    trainer = make_trainer(arguments)
    name = next(n for n in trainer.weights.stepped if n.endswith("0.attn.to_q.weight"))
    first = trainer.weights.stepped[name].detach().clone()
    trainer.train()
    wanted = 0.9 * first + 0.1 * trainer.weights.stepped[name]
    saved = load_file(arguments.output / "step-1.safetensors")["transformer_blocks.0.attn.to_q.weight"]
    torch.testing.assert_close(saved, wanted, rtol=0, atol=1e-7)


def test_gradients_are_shortened(make_arguments) -> None:
    """AdamW hides the length of a gradient, so it is the gradient that is looked at."""
    trainer = make_trainer(make_arguments(lora=False, trainable_models="dit", max_grad_norm=0.01))
    sample = trainer.planner.plan(trainer.dataset[0], "row")
    trainer.module([sample]).mean().backward()
    assert trainer.engine.clip() > 1
    found = torch.stack(
        [p.grad.norm() for p in trainer.weights.parameters.values() if p.grad is not None]
    ).norm()
    assert float(found) == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_sample(make_arguments) -> None:
    arguments = make_arguments(num_epochs=2, learning_rate=1e-2)
    trainer = make_trainer(arguments)

    class Poison:
        def on_step(self, report, trainer) -> None:
            if report.step == 8:
                layer = trainer.pipe.components["transformer"][0].module.proj_out
                layer.bias.data.fill_(float("nan"))

        def on_save(self, files, trainer) -> None: ...
        def on_end(self, trainer) -> None: ...

    trainer.callbacks = (Poison(),)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    assert "step 9" in caught.value.what
    assert ".png" in str(caught.value.got)
    assert "epoch-0.safetensors" in str(caught.value.mend)
    assert names(arguments.output) == ["epoch-0.safetensors"]
    assert all(torch.isfinite(t).all() for t in load_file(arguments.output / "epoch-0.safetensors").values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": False}, "Nothing is trained"),
        ({"lora": False, "trainable_models": "dot"}, "did you mean 'dit'"),
        ({"lora": False, "trainable_models": "vae"}, "cannot be trained in full"),
        ({"extra_inputs": "side_imag"}, "did you mean side_image"),
        ({"extra_inputs": "prompt"}, "which training sets itself"),
        ({"task": "sfd"}, "did you mean sft"),
        ({"extra_inputs": "seed"}, "no use for"),
        ({"model": None, "model_id_with_origin_paths": "Qwen/Qwen-Image"}, "FILE-PATTERN"),
        ({"model": None}, "which models to train"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_first_step(make_arguments, options, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        make_trainer(make_arguments(**options))


def test_every_file_can_be_read_by_whom_the_umask_lets(make_arguments, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    arguments = make_arguments(trainable_models="text_encoder", max_train_steps=1)
    run(arguments)
    files = [path for path in arguments.output.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".png"}
    modes = {path.name: path.stat().st_mode for path in files}
    assert modes == dict.fromkeys(modes, (tmp_path / "plain").stat().st_mode)
