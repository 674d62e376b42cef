"""The published numbers of flow matching, and that a batch is the mean of its samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.module import draw_for
from qwenimage_training.objectives.sft import FlowMatching, training_sigmas, training_weights
from qwenimage_training.run import make_trainer
from qwenimage_training.schedule import factor

# reference: published training code of DiffSynth-Studio, run
FIRST, LAST = (1000, 999.558, 999.116), (24.350, 22.178, 20.000)
WEIGHTS = {
    1000: 0,
    950: 0.259,
    900: 0.510,
    800: 0.979,
    700: 1.355,
    600: 1.599,
    500: 1.683,
    400: 1.599,
    300: 1.352,
    200: 0.979,
    100: 0.507,
    50: 0.259,
    20: 0.104,
}


def test_the_table_of_noise_levels_is_the_published_one() -> None:
    times = [1000 * sigma for sigma in training_sigmas()]
    assert len(times) == 1000
    assert times[:3] == pytest.approx(FIRST, abs=5e-4)
    assert times[-3:] == pytest.approx(LAST, abs=5e-4)


def test_the_weights_are_the_published_ones() -> None:
    sigmas = training_sigmas()
    weights = training_weights(sigmas)
    assert sum(weights) == pytest.approx(1000)
    for time, weight in WEIGHTS.items():
        # the published values stand at the table's entry nearest to the round timestep
        nearest = min(range(1000), key=lambda i: abs(1000 * sigmas[i] - time))
        assert weights[nearest] == pytest.approx(weight, abs=2e-3), time


def test_rounded_timesteps_leave_376_levels_and_five_without_weight() -> None:
    levels = [FlowMatching(bf16_timesteps=True).level(i) for i in range(1000)]
    exact = training_sigmas()
    assert len({told for _, told, _ in levels}) == 376
    assert max(abs(sigma - e) for (sigma, _, _), e in zip(levels, exact, strict=True)) <= 0.0023
    assert sum(weight == 0 for _, _, weight in levels) == 5


def test_learning_rates_rise_and_fall() -> None:
    assert [factor(s, 10, "constant", 3) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert [factor(s, 4, "linear") for s in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [factor(s, 4, "cosine") for s in (0, 2)] == pytest.approx([1, 0.5])
    assert factor(3, 4, "cosine") == pytest.approx(0.1464, abs=1e-4)


def test_a_batch_is_the_mean_of_its_samples(make_arguments) -> None:
    """Losses and gradients, with prompts of different lengths: one pass of four padded samples against four passes."""
    trainer = make_trainer(make_arguments(lora=False, trainable_models="dit"))
    dataset = trainer.dataset
    samples = [trainer.planner.plan(dataset[i], dataset.name_of(i)) for i in range(4)]
    assert len({s.plan.positive.layout.text_tokens for s in samples}) == 4
    together = trainer.module(samples)
    gradients = torch.autograd.grad(together.mean(), _used(trainer), allow_unused=True)
    alone = [trainer.module([sample]) for sample in samples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    singles = torch.autograd.grad(torch.cat(alone).mean(), _used(trainer), allow_unused=True)
    for one, other in zip(gradients, singles, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _used(trainer) -> list[torch.nn.Parameter]:
    return list(trainer.weights.parameters.values())


def test_checkpointing_changes_nothing(make_arguments) -> None:
    losses = {}
    for name in ("", "use_gradient_checkpointing", "use_gradient_checkpointing_offload"):
        trainer = make_trainer(
            make_arguments(lora=False, trainable_models="dit", **({name: True} if name else {}))
        )
        sample = trainer.planner.plan(trainer.dataset[2], "row")
        loss = trainer.module([sample]).mean()
        loss.backward()
        weight = trainer.pipe.components["transformer"][0].module.transformer_blocks[0].img_mlp.net[2].weight
        losses[name] = (loss.item(), weight.grad.clone())
    first = losses[""]
    for value, gradient in losses.values():
        assert value == first[0]
        torch.testing.assert_close(gradient, first[1], rtol=0, atol=1e-7)


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    drawn = {
        (s, e, i): int(torch.randint(2**60, (1,), generator=draw_for(s, e, i)))
        for s in (0, 1)
        for e in (0, 1)
        for i in (0, 1)
    }
    assert len(set(drawn.values())) == 8
    assert drawn[1, 0, 1] == int(torch.randint(2**60, (1,), generator=draw_for(1, 0, 1)))


def test_the_stand_in_for_a_row_is_the_data_side_s(make_arguments, data: Path) -> None:
    arguments: TrainingArguments = make_arguments()
    row = TrainingDataset(arguments)[3]
    assert row.fields["image"].size == (64, 48)
    assert row.prompt.startswith("a cat on a mat")
