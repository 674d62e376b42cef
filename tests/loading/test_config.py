"""ModelConfig takes the published keywords, refuses the rest, and never ignores a placement setting in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.config import ModelConfig

PUBLISHED_VRAM_CONFIG: dict[str, Any] = {
    "offload_dtype": "disk",
    "offload_device": "disk",
    "onload_dtype": torch.float8_e4m3fn,
    "onload_device": "cpu",
    "preparing_dtype": torch.float8_e4m3fn,
    "preparing_device": "cuda",
    "computation_dtype": torch.bfloat16,
    "computation_device": torch.device("cuda"),
}
VAE: dict[str, Any] = {
    "model_id": "Qwen/Qwen-Image",
    "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("QWENIMAGE", "DIFFSYNTH"):
        for name in ("DOWNLOAD_SOURCE", "MODEL_BASE_PATH", "SKIP_DOWNLOAD"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)


def refused(**keywords: Any) -> LoadError:
    with pytest.raises(LoadError) as caught:
        ModelConfig(**keywords)
    return caught.value


def test_published_example_is_taken_unchanged() -> None:
    config = ModelConfig(**VAE, **PUBLISHED_VRAM_CONFIG)
    assert config.placement() == {
        "offload_dtype": "disk",
        "offload_device": "disk",
        "onload_dtype": "float8_e4m3fn",
        "onload_device": "cpu",
        "preparing_dtype": "float8_e4m3fn",
        "preparing_device": "cuda",
        "computation_dtype": "bfloat16",
        "computation_device": "cuda",
    }
    assert str(config) == "Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors"


def test_defaults_are_modelscope_and_models_folder() -> None:
    config = ModelConfig(**VAE)
    assert config.source() == "modelscope"
    assert config.base_folder() == Path("models")
    assert config.offline() is False


@pytest.mark.parametrize("prefix", ["QWENIMAGE", "DIFFSYNTH"])
def test_environment_of_both_names_is_read_when_needed(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(**VAE)
    monkeypatch.setenv(f"{prefix}_DOWNLOAD_SOURCE", "HuggingFace")
    monkeypatch.setenv(f"{prefix}_MODEL_BASE_PATH", "/data/models")
    monkeypatch.setenv(f"{prefix}_SKIP_DOWNLOAD", "True")
    assert (config.source(), config.base_folder(), config.offline()) == (
        "huggingface",
        Path("/data/models"),
        True,
    )


def test_own_environment_and_keywords_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSYNTH_DOWNLOAD_SOURCE", "HuggingFace")
    monkeypatch.setenv("QWENIMAGE_DOWNLOAD_SOURCE", "ModelScope")
    assert ModelConfig(**VAE).source() == "modelscope"
    assert ModelConfig(**VAE, download_source="huggingface").source() == "huggingface"
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "true")
    assert ModelConfig(**VAE, skip_download=False).offline() is False


def test_environment_with_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENIMAGE_DOWNLOAD_SOURCE", "github")
    with pytest.raises(LoadError, match=r"QWENIMAGE_DOWNLOAD_SOURCE.*\n.*'github'\n.*modelscope"):
        ModelConfig(**VAE).source()
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "maybe")
    with pytest.raises(LoadError, match=r"DIFFSYNTH_SKIP_DOWNLOAD.*\n.*'maybe'"):
        ModelConfig(**VAE).offline()


def test_unknown_keyword_names_the_nearest() -> None:
    error = refused(modelid="Qwen/Qwen-Image")
    assert "'modelid'" in error.what
    assert error.mend == "did you mean 'model_id'?"
    assert error.expected is not None and "origin_file_pattern" in error.expected


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({}, "exactly one way"),
        ({"path": "a.safetensors", "model_id": "Qwen/Qwen-Image"}, "exactly one way"),
        ({"path": "a.safetensors", "origin_file_pattern": "vae/*"}, "`origin_file_pattern` has no effect"),
        ({"path": "a.safetensors", "revision": "v1"}, "`revision` has no effect"),
        ({"path": []}, "`path` is no file name"),
        ({"path": 3}, "`path` is no file name"),
        ({"model_id": "Qwen-Image"}, "no hub id"),
        ({"model_id": "../etc"}, "no hub id"),
        ({"model_id": "Qwen/.."}, "no hub id"),
        ({**VAE, "origin_file_pattern": "../secrets/*"}, "leaves its repository"),
        ({**VAE, "origin_file_pattern": "/etc/*"}, "leaves its repository"),
        ({**VAE, "origin_file_pattern": ["vae/*", "x/../../y"]}, "leaves its repository"),
        ({**VAE, "origin_file_pattern": 3}, "no pattern"),
        ({**VAE, "download_source": "torrent"}, "no hub known"),
        ({**VAE, "skip_download": "perhaps"}, "`skip_download`"),
        ({**VAE, "computation_dtype": "int3"}, "Not a dtype"),
        ({**VAE, "computation_dtype": torch.int64}, "Not a dtype"),
        ({**VAE, "computation_device": "gpu"}, "Not a device"),
        ({**VAE, "computation_device": "cuda:x"}, "Not a device"),
        ({**VAE, "computation_dtype": "disk", "computation_device": "disk"}, "cannot be"),
        ({**VAE, "offload_dtype": "disk", "offload_device": "cpu"}, "together or not at all"),
        ({**VAE, "offload_device": "cpu"}, "needs both"),
        ({**VAE, "onload_device": "cpu", "onload_dtype": "bfloat16"}, "needs both"),
    ],
)
def test_wrong_values_are_refused(keywords: dict[str, Any], what: str) -> None:
    error = refused(**keywords)
    assert what in error.what
    assert error.got or error.expected


@pytest.mark.parametrize(
    ("pattern", "parsed"),
    [
        ("tokenizer/", ("tokenizer/*",)),
        ("./", ("*",)),
        ("", ("*",)),
        (None, ()),
        (["a/*", "b/"], ("a/*", "b/*")),
    ],
)
def test_pattern_spellings(pattern: Any, parsed: tuple[str, ...]) -> None:
    assert ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern=pattern).origin_file_pattern == parsed


def test_config_imports_no_torch() -> None:
    code = "import sys; import qwenimage_core.loading.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
