"""Whatever a model's weights are stored in, it draws the picture that its decoded weights draw, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import AdapterError, LoadError, ModelConfig
from qwenimage_core.loading.checkpoint import Checkpoint
from tests.formats.conftest import open_model
from tests.formats.writers import FORMATS

Draw = Callable[..., torch.Tensor]
Rewrite = Callable[..., tuple[Path, Path]]

ON_DISK: dict[str, Any] = dict.fromkeys(
    ("offload_dtype", "offload_device", "onload_dtype", "onload_device"), "disk"
)
AS_STORED: dict[str, Any] = {
    "offload_dtype": "disk",
    "offload_device": "disk",
    "onload_dtype": "stored",
    "onload_device": "cpu",
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_picture_of_the_decoded_weights(rewrite: Rewrite, draw: Draw, name: str) -> None:
    stored, dense = rewrite(name)
    expected = draw(dense)
    assert torch.equal(draw(stored), expected), "in memory"
    assert torch.equal(draw(stored, **ON_DISK, stay=0), expected), "streamed from disk"
    assert torch.equal(draw(stored, **AS_STORED, stay=1), expected), "waiting in memory as stored"
    kept = draw(stored, **AS_STORED, preparing_dtype="stored", preparing_device="cpu")
    assert torch.equal(kept, expected), "kept as stored"


@pytest.mark.parametrize("name", ["plain fp8", "scaled fp8, rows", "nf4, double"])
def test_a_text_encoder(rewrite: Rewrite, draw: Draw, name: str) -> None:
    stored, dense = rewrite(name, "text_encoder")
    expected = draw(dense)
    assert torch.equal(draw(stored), expected)
    assert torch.equal(draw(stored, **ON_DISK, stay=1), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_that_wait_as_stored_take_the_bytes_of_the_file(rewrite: Rewrite, name: str) -> None:
    pipe = open_model(rewrite(name)[0], **AS_STORED, preparing_dtype="stored", preparing_device="cpu")
    component = pipe.components["transformer"][0]
    component.load()
    in_file = sum(
        component.stored_bytes(leaf.name) for unit in component.blocks.units for leaf in unit.leaves
    )
    assert component.blocks.resident_bytes() == in_file
    assert sum(component.blocks.resting_bytes(component.placement.preparing)) == in_file
    wide = sum(unit.nbytes(torch.float32) for unit in component.blocks.units)
    assert in_file < wide / (2.5 if "fp8" in name or "Q8" in name else 4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_lora_acts_beside_it(rewrite: Rewrite, draw: Draw, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    lora = tmp_path / "lora.safetensors"
    layer = "transformer_blocks.1.attn.to_q"
    save_file(
        {f"{layer}.lora_A.weight": torch.randn(4, 64), f"{layer}.lora_B.weight": torch.randn(64, 4)}, lora
    )
    stored, dense = rewrite(name)
    expected = draw(dense, lora=lora)
    assert not torch.equal(expected, draw(dense))
    assert torch.equal(draw(stored, lora=lora), expected)
    assert torch.equal(draw(stored, lora=lora, **AS_STORED, stay=0), expected)
    pipe = open_model(stored, **AS_STORED)
    with pytest.raises(AdapterError, match="cannot be merged"):
        pipe.load_lora(lora, mode="merged")


def test_digests_tell_formats_apart(rewrite: Rewrite) -> None:
    digests = [Checkpoint.open(rewrite(name)[0] / "transformer").digest() for name in FORMATS]
    assert len(set(digests)) == len(digests)
    assert all(digest.startswith("sha256:") for digest in digests)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("plain fp8", "float8_e4m3fn"),
        ("scaled fp8, rows", "scaled float8_e4m3fn"),
        ("GGUF Q4_K", "GGUF Q4_K"),
        ("nf4, double", "nf4"),
    ],
)
def test_a_component_says_what_it_is_stored_in(rewrite: Rewrite, name: str, form: str) -> None:
    component = open_model(rewrite(name)[0]).components["transformer"][0]
    assert form in component.stored_dtypes()
    assert ("float8_e4m3fn" in component.stored_dtypes()) == (name == "plain fp8")
    held = open_model(rewrite(name)[0], **(AS_STORED | {"onload_dtype": "float8_e4m3fn"}))
    assert "float8_e4m3fn" in held.components["transformer"][0].stored_dtypes()


def test_computing_in_the_stored_form_is_refused() -> None:
    with pytest.raises(LoadError, match="decoded to compute"):
        ModelConfig(path="x", computation_dtype="stored", computation_device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "scaled fp8, ComfyUI",
        "scaled fp8, comfy_quant",
        "scaled fp8, rows",
        "scaled fp8, blocks",
        "nf4, double",
    ],
)
def test_a_pickle_that_is_allowed_means_the_same(rewrite: Rewrite, tmp_path: Path, name: str) -> None:
    (file,) = (rewrite(name)[0] / "transformer").glob("*.safetensors")
    torch.save(load_file(file), tmp_path / "model.pt")
    stored, pickled = Checkpoint.open(file), Checkpoint.open(tmp_path / "model.pt", allow_pickle=True)
    assert pickled.shapes == stored.shapes
    for _ in range(2):  # what is decoded is not what is kept
        assert all(torch.equal(pickled.read(each), stored.read(each)) for each in stored.tensors)
