"""LoRAs: which layers, the way through a file, starting from one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenimage_core import QwenImagePipeline
from qwenimage_core.adapters.files import load_lora
from qwenimage_core.adapters.weights import LowRank
from qwenimage_core.errors import AdapterError, RequestError
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_training.lora import find_targets
from qwenimage_training.run import make_trainer, run
from qwenimage_training.settings import TARGETS

DRAW = {
    "prompt": "a cat",
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "seed": 3,
    "output_type": "tensor",
}


@pytest.fixture(scope="module")
def full_size() -> QwenImageTransformer:
    with torch.device("meta"):
        return QwenImageTransformer(TransformerConfig())


def test_the_published_targets_are_720_layers_of_235929600_weights(full_size: QwenImageTransformer) -> None:
    found = find_targets(full_size, ",".join(TARGETS))
    layers = [full_size.get_submodule(name) for name in found]
    assert len(found) == 720
    assert sum(32 * (layer.in_features + layer.out_features) for layer in layers) == 235_929_600


def test_no_targets_mean_every_large_layer_of_the_blocks(full_size: QwenImageTransformer) -> None:
    assert len(find_targets(full_size, "")) == 840


def test_a_single_target_is_the_end_of_a_name_or_a_pattern(full_size: QwenImageTransformer) -> None:
    assert len(find_targets(full_size, "to_q")) == 60
    assert find_targets(full_size, r".*\.to_q") == find_targets(full_size, "to_q")


def test_targets_that_match_nothing_are_refused_with_the_nearest(full_size: QwenImageTransformer) -> None:
    with pytest.raises(RequestError) as caught:
        find_targets(full_size, "to_q,to_kk")
    assert "'to_kk'" in caught.value.what
    assert "to_k" in str(caught.value.expected)
    with pytest.raises(RequestError, match="matches no linear layer"):
        find_targets(full_size, "q,k,v,o,ffn.0,ffn.2")


def test_a_trained_lora_draws_what_the_trained_model_draws(make_arguments, folder: Path) -> None:
    arguments = make_arguments(num_epochs=2, learning_rate=1e-2, lora_alpha=6, lora_trigger="zkz")
    trainer = run(arguments)
    assert sorted(p.name for p in arguments.output.glob("*.safetensors")) == [
        "epoch-0.safetensors",
        "epoch-1.safetensors",
    ]
    file = arguments.output / "epoch-1.safetensors"
    fresh = QwenImagePipeline.from_pretrained(str(folder), device="cpu")
    before = fresh(**DRAW)
    fresh.load_lora(file)
    after = fresh(**DRAW)
    assert (after - before).abs().mean() > 1e-3
    torch.testing.assert_close(after, trainer.pipe(**DRAW), rtol=1e-4, atol=1e-4)

    weights = load_lora(file)
    assert len(weights.modules) == 6  # three targets in two blocks
    assert weights.format == "comfyui"
    said = weights.metadata
    assert (said["lora_rank"], said["lora_alpha"], said["trigger"]) == ("4", "6", "zkz")
    assert said["lora_target_modules"] == "to_q,to_v,img_mlp.net.2"
    assert said["dataset_digest"] == trainer.dataset.digest()


def test_a_run_starts_from_a_file_and_goes_on_from_what_it_is(make_arguments, tmp_path: Path) -> None:
    first = make_arguments(learning_rate=1e-2, lora_alpha=6)
    run(first)
    file = first.output / "epoch-0.safetensors"
    started = make_trainer(make_arguments(lora_checkpoint=str(file), lora_alpha=2))
    wanted = load_lora(file).modules["transformer_blocks.0.attn.to_q"]
    layer = started.pipe.components["transformer"][0].module.transformer_blocks[0].attn.to_q
    assert isinstance(wanted, LowRank)
    change = layer.get_delta_weight("default")
    torch.testing.assert_close(change, wanted.delta_OI(), rtol=1e-5, atol=1e-6)
    assert change.abs().max() > 0
    with pytest.raises(AdapterError, match="cannot be trained on"):
        make_trainer(make_arguments(lora_checkpoint=str(file), lora_rank=8))


def test_a_preset_lora_is_in_the_weights_and_not_in_the_new_file(
    make_arguments, folder: Path, tmp_path: Path
) -> None:
    preset = make_arguments(learning_rate=1e-2, output_path=str(tmp_path / "preset"))
    run(preset)
    file = str(preset.output / "epoch-0.safetensors")
    trainer = make_trainer(make_arguments(preset_lora_path=file, preset_lora_model="dit"))
    plain = QwenImagePipeline.from_pretrained(str(folder), device="cpu")
    before = plain(**DRAW)
    plain.load_lora(file)
    torch.testing.assert_close(trainer.pipe(**DRAW), plain(**DRAW), rtol=1e-4, atol=1e-4)
    assert (plain(**DRAW) - before).abs().max() > 1e-3
    assert all((layer.lora_B["default"].weight == 0).all() for layer in _layers(trainer))


def _layers(trainer) -> list:
    from qwenimage_training.lora import lora_layers

    return list(lora_layers(trainer.trained.lora.module).values())


def test_a_bfloat16_model_has_a_float32_lora_and_a_bfloat16_file(make_arguments) -> None:
    arguments = make_arguments(mixed_precision="bf16", learning_rate=1e-2)
    trainer = run(arguments)
    assert {p.dtype for p in trainer.weights.parameters.values()} == {torch.float32}
    change = load_lora(arguments.output / "epoch-0.safetensors").modules["transformer_blocks.0.attn.to_q"]
    assert isinstance(change, LowRank)
    assert change.down_RI.dtype == torch.bfloat16
    assert change.up_OR.abs().max() > 0
