"""A text encoder as llama.cpp writes it: its own names, the published order of rows, no vision tower, no head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwenimage_core import ModelConfig
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.components import Component, find_components
from qwenimage_core.loading.gguf_file import llama_name
from qwenimage_core.models.prompt_tokens import PromptTokens
from tests.formats.weights import CONFIG, text_encoder_weights

GGUF = Path(__file__).with_name("text_encoder.gguf")


def opened(folder: Path) -> Component:
    return find_components([ModelConfig(path=folder)], needed=())["text_encoder"][0]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The file of the gguf package, and what it decodes to under the published names."""
    for name in ("gguf", "dense"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(GGUF, tmp_path / "gguf")
    checkpoint = Checkpoint.open(GGUF)
    decoded = {str(llama_name(name)): checkpoint.read(name) for name in checkpoint.tensors}
    save_file(decoded, tmp_path / "dense" / "model.safetensors")
    return tmp_path / "gguf", tmp_path / "dense"


def test_every_tensor_is_the_published_one(folders: tuple[Path, Path]) -> None:
    """Within half a step of Q8_0, a 127th of the largest number among 32, and what rounding the step to sixteen
    bits adds: 127 times 2 ** -11 of it."""
    checkpoint, weights = Checkpoint.open(GGUF), text_encoder_weights()
    assert {llama_name(name) for name in checkpoint.tensors} == set(weights)
    for name in checkpoint.tensors:
        stored, wanted = checkpoint.read(name), weights[str(llama_name(name))]
        steps = wanted.view(-1, 32).abs().amax(1, keepdim=True) / 127 if wanted.ndim == 2 else torch.zeros(1)
        error = (stored - wanted).view(-1, 32 if wanted.ndim == 2 else 1).abs()
        assert (error <= (0.5 + 127 / 2048) * steps).all(), name


def test_it_encodes_what_the_same_weights_do_in_safetensors(folders: tuple[Path, Path]) -> None:
    tokens = PromptTokens(tuple(range(20)), (), 0, image_id=-1)
    with torch.no_grad():
        stored, dense = (opened(folder).module(tokens) for folder in folders)
    assert torch.equal(stored, dense)


def test_it_cannot_see(folders: tuple[Path, Path]) -> None:
    module = opened(folders[0]).module
    assert module.visual is None
    with pytest.raises(RequestError, match="without its vision tower") as error:
        module(PromptTokens((0, 1), ((1, 1),), 0, image_id=1), torch.zeros(4, 6))
    assert "GGUF" in str(error.value.mend)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.scale", "blk.x.attn_q.weight", "blk.0.ssm_in.weight", "v.blk.0.ln1.weight"]
)
def test_other_names_are_no_text_encoder(name: str) -> None:
    assert llama_name(name) is None
