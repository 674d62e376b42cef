"""The trainers learn, and a training that was interrupted goes on as if it had not been."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwenimage_tiny import latents, model_path
from qwenimage_tiny.muon import orthogonal
from qwenimage_tiny.sheet import loss_curve
from qwenimage_tiny.train_transformer import USED, Log, Settings, TransformerTraining, noise_levels, run
from qwenimage_tiny.train_vae import VAETraining, build_vae

SETTINGS = Settings(steps=8, batch=4, warmup=2, pool_size=48, pool_passes=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(model_path() / part, tmp_path / "model" / part)
    return tmp_path


def test_transformer_training_resumes_to_the_bit(folder, tmp_path):
    straight = TransformerTraining(folder, SETTINGS)
    for _ in range(6):
        straight.train_step()

    first = TransformerTraining(folder, SETTINGS)
    for _ in range(3):
        first.train_step()
    first.save()
    second = TransformerTraining(folder, SETTINGS)
    assert second.step == 3
    for _ in range(3):
        second.train_step()

    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
        assert torch.equal(straight.average[name], second.average[name]), name
    assert straight.data.place == second.data.place


def test_two_workers_train_as_one(folder):
    one, two = TransformerTraining(folder, SETTINGS), TransformerTraining(folder, SETTINGS, workers=2)
    levels, losses = one.train_step()
    torch.testing.assert_close((levels, losses), two.train_step(), atol=1e-5, rtol=1e-5)
    for name, parameter in one.model.named_parameters():
        other = two.model.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_vae_training_resumes_to_the_bit(tmp_path):
    straight = VAETraining(tmp_path, steps=100)
    for _ in range(3):
        straight.train_step()
    first = VAETraining(tmp_path, steps=100)
    first.train_step()
    first.save()
    second = VAETraining(tmp_path, steps=100)
    for _ in range(2):
        second.train_step()
    for name, value in straight.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name]), name


def test_the_transformer_learns_a_few_examples(folder):
    few = replace(SETTINGS, steps=60, pool_size=40, pool_passes=1000, dropout=0.0, warmup=1)
    training = TransformerTraining(folder, few)
    losses = [training.train_step()[1].mean().item() for _ in range(60)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_unused_channels_stay_cut_off(folder):
    training = TransformerTraining(folder, SETTINGS)
    for _ in range(3):
        training.train_step()
    weights = training.model.state_dict()
    assert (weights["img_in.weight"][:, USED:] == 0).all()
    assert (weights["proj_out.weight"][USED:] == 0).all()
    assert (weights["img_in.weight"][:, :USED] != 0).any()


def test_the_vae_does_not_see_unused_channels(tmp_path):
    vae = build_vae()
    z = torch.randn(1, latents.CHANNELS, 4, 4)
    other = z.clone()
    other[:, latents.ACTIVE :] += 1
    with torch.no_grad():
        assert torch.equal(vae.decode(z), vae.decode(other))


def test_noise_levels_cover_the_range():
    levels = noise_levels(1000, torch.Generator().manual_seed(0))
    assert ((levels > 0) & (levels < 1)).all()
    assert levels.min() < 0.05
    assert levels.max() > 0.95
    assert 0.5 < levels.median() < 0.7


def test_muons_matrices_are_nearly_orthogonal():
    x = orthogonal(torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_training_logs_saves_and_draws_its_curve(folder):
    training = TransformerTraining(folder, replace(SETTINGS, steps=4))
    log = Log(folder / "log.jsonl")
    run(training, log, save_every=2, log_every=2)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert training.path.exists()
    loss_curve(folder / "log.jsonl", folder / "loss.png")
    assert (folder / "loss.png").stat().st_size > 1000
