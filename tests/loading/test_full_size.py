"""The published model at its true size, as files with headers and no data: found, checked, counted, not read."""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.bundle import find_bundle
from qwenimage_core.loading.components import find_components
from qwenimage_core.models.text_encoder import PUBLISHED_CONFIG
from qwenimage_core.models.vae import VAEConfig, published_shapes
from qwenimage_core.testing.checkpoints import (
    text_encoder_config,
    text_encoder_shapes,
    transformer_config,
    transformer_shapes,
)

Shapes = Mapping[str, Sequence[int]]
TRANSFORMER = transformer_config(60) | {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}


def language_shapes() -> Shapes:
    """The published text encoder: its proportions are not those of the tiny one."""
    config = text_encoder_config(width=3584, layers=28, heads=28, vision_width=1280, vision_layers=32)
    config |= {"intermediate_size": 18944, "num_key_value_heads": 4, "vocab_size": 152064}
    config["vision_config"] |= {"intermediate_size": 3420}
    return text_encoder_shapes(config)


def write_hollow(folder: Path, stem: str, shapes: Shapes, shards: int) -> None:
    """bfloat16 shards whose data is a hole in the file: full size, a few kilobytes on disk."""
    folder.mkdir(parents=True)
    names, weight_map, total = sorted(shapes), {}, 0
    for number in range(shards):
        header, end = {}, 0
        for name in names[number * len(names) // shards : (number + 1) * len(names) // shards]:
            begin, end = end, end + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [begin, end]}
        file = folder / f"{stem}-{number + 1:05}-of-{shards:05}.safetensors"
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file.name)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "Qwen-Image"
    write_hollow(folder / "transformer", "diffusion_pytorch_model", transformer_shapes(TRANSFORMER), 9)
    write_hollow(folder / "text_encoder", "model", language_shapes(), 4)
    write_hollow(folder / "vae", "diffusion_pytorch_model", published_shapes(VAEConfig()), 1)
    for part, config in {"transformer": TRANSFORMER, "text_encoder": PUBLISHED_CONFIG}.items():
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


def test_true_size_is_checked_from_headers_alone(published: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = find_components(find_bundle(published).models, dtype=torch.bfloat16)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    transformer, text_encoder, vae = (found[kind][0] for kind in ("transformer", "text_encoder", "vae"))
    assert transformer.parameters == 20_430_401_088
    assert transformer.bytes == 40_860_802_176
    # Without its head, a matrix of 152064 x 3584.
    assert text_encoder.bytes == text_encoder.checkpoint.nbytes - 2 * 152064 * 3584
    # A third of each kernel of the VAE is used, and no temporal convolution.
    assert len(vae.checkpoint.tensors) == 194 and vae.bytes < 0.5 * vae.checkpoint.nbytes
    assert not any(component.loaded for several in found.values() for component in several)
    assert grown < 1.5e9, "55 GB of weights are described, imports are most of what this takes"


def test_one_byte_short_of_41_gb_is_noticed(published: Path) -> None:
    file = published / "transformer" / "diffusion_pytorch_model-00005-of-00009.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(LoadError, match="cut off") as caught:
        find_components(find_bundle(published).models)
    os.truncate(file, size)
    assert (caught.value.got, caught.value.expected) == (f"{size - 1:,} bytes", f"{size:,} bytes")
