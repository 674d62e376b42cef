"""Plugins are trained with no line of their own in the trainer: a single file, the columns of an item, a component."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenimage_core.errors import QwenImageError
from qwenimage_core.registry import PluginRegistry
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import make_trainer, run

from .third_party import parts


def test_a_single_file_plugin_is_trained(make_arguments, glance: dict, folder: Path) -> None:
    net = glance.pop("net")
    options = {**glance, **parts(folder, net)}
    trainer = make_trainer(make_arguments(**options))
    planned = [trainer.planner.plan(trainer.dataset[i], f"row {i}").plan for i in range(3)]
    assert [len(p.images) for p in planned] == [0, 1, 1]
    assert [len(p.positive.residuals) for p in planned] == [0, 1, 1]
    [item] = planned[1].request.glances
    assert (item.weight, item.image.size) == (0.5, (64, 48))
    trainer.train()
    assert (trainer.arguments.output / "epoch-0.safetensors").is_file()


def test_a_plugin_s_component_is_trained(make_arguments, glance: dict, folder: Path) -> None:
    from safetensors.torch import load_file

    net = glance.pop("net")
    options = {**glance, **parts(folder, net), "lora": False, "trainable_models": "glance_net"}
    with pytest.raises(TrainingError, match=r"nothing to do with what is trained") as caught:
        run(make_arguments(**options, max_train_steps=3))
    assert "0.png" in str(caught.value.got)
    rows = Path(options["dataset_metadata_path"])
    rows.write_text(json.dumps(json.loads(rows.read_text())[1:]))
    arguments = make_arguments(
        **options, learning_rate=1e-2, remove_prefix_in_ckpt="pipe.glance_net.", num_epochs=2
    )
    run(arguments)
    before, after = load_file(net), load_file(arguments.output / "epoch-1.safetensors")
    assert before.keys() == after.keys()
    assert (before["glance_in.weight"] - after["glance_in.weight"]).abs().min() > 0


def test_a_column_that_no_plugin_knows_is_an_error_that_names_the_row(make_arguments) -> None:
    trainer = make_trainer(make_arguments(extra_inputs="side_image", data_file_keys="image,side_image"))
    with pytest.raises(QwenImageError, match="side_image") as caught:
        trainer.train()
    assert any("metadata.json" in note for note in caught.value.__notes__)


def test_training_is_a_plugin_without_request_fields() -> None:
    import qwenimage_training

    registry = PluginRegistry.discover([qwenimage_training])
    assert registry.get("training").fields == ()
