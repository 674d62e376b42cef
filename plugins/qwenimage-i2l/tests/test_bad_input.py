"""What is refused: in words that say what was given, what is needed and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from qwenimage_core import LoadError, QwenImagePipeline, RequestError

from .conftest import ENCODERS, LAYERS, NETWORKS, bias_weights, network_shapes, picture, random_weights

STYLE, COARSE, FINE = NETWORKS
ONE = [picture()]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"i2l_images": []}, "no pictures .* at least 1"),
        ({"i2l_images": [None]}, "Picture 1 of i2l_images is missing"),
        ({"i2l_images": ["none.png"]}, "there is no picture at none.png"),
        ({"i2l_images": [*ONE, Image.new("RGBA", (9, 9))]}, "Picture 2 .*transparent,.*background"),
        ({"i2l_images": ONE, "i2l_mode": "stile"}, "'stile' is no mode; choose style"),
        ({"i2l_images": ONE, "i2l_mode": "style+style"}, "each part once"),
        ({"i2l_images": ONE, "i2l_mode": "bias"}, "bias beside others only"),
        ({"i2l_images": ONE, "i2l_strength": float("nan")}, "i2l_strength"),
        ({"i2l_images": ONE, "i2l_bias": "b.safetensors"}, "no bias in it.*'style\\+bias'"),
        ({"i2l_images": ONE, "i2l_mode": "style+bias", "i2l_bias": 3}, "a LoRA file or its ModelConfig"),
        (
            {"i2l_strength": 0.5, "i2l_mode": "coarse"},
            "i2l_mode and i2l_strength do nothing without i2l_images",
        ),
    ],
)
def test_bad_requests(pipe: QwenImagePipeline, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as error:
        pipe.plan("x", **fields)
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


@pytest.mark.parametrize(
    ("files", "mode", "absent"),
    [
        ((), "style", ["SigLIP2-G384/model", "DINOv3-7B/model", "Qwen-Image-i2L-Style"]),
        ((*ENCODERS, STYLE), "coarse+fine", ["Qwen-Image-i2L-Coarse", "Qwen-Image-i2L-Fine"]),
        ((ENCODERS[0], STYLE), "style", ["DINOv3-7B/model"]),
    ],
)
def test_no_encoder_loaded_names_the_model_configs_to_add(
    open_pipe: Callable[..., QwenImagePipeline], files: tuple[str, ...], mode: str, absent: list[str]
) -> None:
    with pytest.raises(RequestError) as error:
        open_pipe(*files).plan("x", i2l_images=ONE, i2l_mode=mode)
    lines = re.findall(r'ModelConfig\(model_id="DiffSynth-Studio/.*"(.*?)\.safetensors"\)', str(error.value))
    assert lines == absent


@pytest.mark.parametrize(
    ("mode", "shapes", "said"),
    [
        ("style", network_shapes(depth=3), "3 blocks of width 64.*expected: 2 blocks"),
        ("style", network_shapes(width=32), "2 blocks of width 32"),
        ("style", network_shapes(embedding=99), "give 192 numbers together.*99"),
        ("coarse", network_shapes(100), "71 tokens of width 48.*100 tokens"),
    ],
)
def test_networks_of_other_models(
    open_pipe: Callable[..., QwenImagePipeline], tmp_path: Path, mode: str, shapes: Any, said: str
) -> None:
    file = tmp_path / "network.safetensors"
    save_file(random_weights(shapes, 0), file)
    with pytest.raises(RequestError) as error:
        open_pipe(*ENCODERS, file).plan("x", i2l_images=ONE, i2l_mode=mode)
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


def test_a_network_with_other_layers_is_not_recognised(
    open_pipe: Callable[..., QwenImagePipeline], tmp_path: Path
) -> None:
    weights = random_weights(network_shapes(), 0)
    del weights["blocks.0.layers.3.proj_a.proj_in.weight"]
    save_file(weights, tmp_path / "network.safetensors")
    with pytest.raises(LoadError, match="other layers than the 96 tensors"):
        open_pipe(tmp_path / "network.safetensors")


def test_two_networks_of_a_kind(open_pipe: Callable[..., QwenImagePipeline]) -> None:
    with pytest.raises(LoadError, match="Two components of the kind i2l_style"):
        open_pipe(STYLE, STYLE)


def test_a_bias_of_other_layers(pipe: QwenImagePipeline, small: dict[str, Any], tmp_path: Path) -> None:
    save_file(bias_weights(LAYERS[1:]), tmp_path / "bias.safetensors")
    fields = {"i2l_images": ONE, "i2l_mode": "coarse+bias", "i2l_bias": tmp_path / "bias.safetensors"}
    with pytest.raises(RequestError, match=rf"(?s)23 layers; different: {LAYERS[0]}.*the same 24"):
        pipe(**small, **fields)
