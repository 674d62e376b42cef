"""A ModelConfig becomes files: those that are here, else those that the hub's own client brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.sources import locate, locate_folder

if TYPE_CHECKING:
    from conftest import LocalHub

MODEL = "Qwen/Qwen-Image"
WEIGHTS = {"a": torch.ones(2), "b": torch.zeros(3)}

# Runs `locate` on each line of JSON, in a process of its own: the clients read their hub's address when imported.
LOCATE = """
import json, sys
from qwenimage_core.errors import LoadError
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.sources import locate
for line in sys.stdin:
    try:
        answer = [str(path) for path in locate(ModelConfig(**json.loads(line)))]
    except LoadError as error:
        answer = error.as_dict()
    print("answer:", json.dumps(answer), flush=True)
"""


class Client:
    """One hub's own client, talking to the hub on this machine; files land in `here`."""

    def __init__(self, source: str, hub: LocalHub, process: subprocess.Popen[str]) -> None:
        self.source, self.hub, self._process = source, hub, process
        self.here = Path()

    def locate(self, pattern: str) -> list[str] | dict[str, str]:
        keywords = {"model_id": MODEL, "origin_file_pattern": pattern, "local_model_path": str(self.here)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({**keywords, "download_source": self.source}) + "\n")
        self._process.stdin.flush()
        answer = next(line for line in self._process.stdout if line.startswith("answer:"))
        return json.loads(answer.removeprefix("answer:"))


@pytest.fixture(scope="module", params=["huggingface", "modelscope"])
def process(
    request: pytest.FixtureRequest, hub: LocalHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | hub.environment() | {"HOME": str(home), "HF_HOME": str(home / "hf")}
    for name in ("HF_HUB_OFFLINE", "QWENIMAGE_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD"):
        environment.pop(name, None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", LOCATE], env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield Client(request.param, hub, process)
        process.stdin.close()


@pytest.fixture
def client(process: Client, tmp_path: Path) -> Client:
    process.hub.root, process.here = tmp_path / "hub", tmp_path / "models"
    return process


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(WEIGHTS, path)
        else:
            path.write_text("{}")


def offline(root: Path, pattern: str | list[str] | None = None) -> ModelConfig:
    return ModelConfig(model_id=MODEL, origin_file_pattern=pattern, local_model_path=root, skip_download=True)


def located(root: Path, config: ModelConfig) -> list[str]:
    return [path.relative_to(root / MODEL).as_posix() for path in locate(config)]


# --- files that are here ------------------------------------------------------------------------------------------


def test_local_path_and_list_are_taken_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    files = [tmp_path / MODEL / name for name in ("b.safetensors", "a.safetensors")]
    assert locate(ModelConfig(path=str(files[0]))) == (files[0],)
    assert locate(ModelConfig(path=[str(file) for file in files])) == tuple(files)


def test_missing_local_path_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors")
    wrong = tmp_path / MODEL / "modle.safetensors"
    with pytest.raises(LoadError) as caught:
        locate(ModelConfig(path=wrong))
    error = caught.value
    assert error.what == f"{wrong} does not exist."
    assert error.got == f"{tmp_path / MODEL} holds model.safetensors"
    assert error.expected is not None
    assert error.mend == f"did you mean {tmp_path / MODEL / 'model.safetensors'}?"


def test_downloaded_files_are_found_without_asking_the_hub(tmp_path: Path) -> None:
    shards = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    put(tmp_path, *shards, "transformer/config.json", "vae/diffusion_pytorch_model.safetensors")
    config = ModelConfig(
        model_id=MODEL,
        origin_file_pattern="transformer/diffusion_pytorch_model*.safetensors",
        local_model_path=tmp_path,
    )
    assert located(tmp_path, config) == shards  # the tests' guard refuses any connection


def test_folders_and_whole_repositories(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer/vocab.json", "tokenizer/merges.txt", "model_index.json")
    assert located(tmp_path, offline(tmp_path, "tokenizer/")) == [
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
    ]
    assert locate_folder(offline(tmp_path, "tokenizer/")) == tmp_path / MODEL / "tokenizer"
    assert locate(offline(tmp_path)) == (tmp_path / MODEL,)
    with pytest.raises(LoadError, match="not one folder"):
        locate_folder(offline(tmp_path, ["tokenizer/*.txt", "*.json"]))


def test_link_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "vae/config.json")
    save_file(WEIGHTS, tmp_path / "elsewhere.safetensors")
    (tmp_path / MODEL / "vae" / "x.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(LoadError) as caught:
        locate(offline(tmp_path, "vae/*.safetensors"))
    assert "leads out of its folder" in caught.value.what
    assert caught.value.got == str(tmp_path / "elsewhere.safetensors")
    assert caught.value.mend == f'give it as path="{tmp_path / "elsewhere.safetensors"}"'


def test_nothing_here_and_downloading_switched_off(tmp_path: Path) -> None:
    put(tmp_path, "vae/config.json")
    with pytest.raises(LoadError) as caught:
        locate(offline(tmp_path, "transformer/*.safetensors"))
    error = caught.value
    assert f"{MODEL}:transformer/*.safetensors is not on this machine" in error.what
    assert error.got == f"{tmp_path / MODEL} holds vae"
    assert error.mend is not None
    assert str(tmp_path / MODEL) in error.mend
    assert "QWENIMAGE_SKIP_DOWNLOAD" in error.mend


# --- through the hubs' clients ------------------------------------------------------------------------------------


def test_download_brings_the_files_with_config_and_index(client: Client) -> None:
    stem = "transformer/diffusion_pytorch_model"
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    companions = ["transformer/config.json", f"{stem}.safetensors.index.json"]
    put(client.hub.root, *shards, "vae/diffusion_pytorch_model.safetensors", "transformer/notes.txt")
    put(client.hub.root, "transformer/config.json")
    weight_map = {"a": Path(shards[0]).name, "b": Path(shards[1]).name}
    (client.hub.root / MODEL / companions[1]).write_text(json.dumps({"weight_map": weight_map}))
    found = client.locate("transformer/diffusion_pytorch_model*.safetensors")
    here = client.here / MODEL
    assert found == [str(here / shard) for shard in shards]
    for name in (*shards, *companions):
        assert (here / name).read_bytes() == (client.hub.root / MODEL / name).read_bytes()
    assert not (here / "vae").exists(), "only what was asked for is downloaded"
    assert not (here / "transformer" / "notes.txt").exists()


def test_incomplete_download_is_completed(client: Client) -> None:
    shards = [f"transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    put(client.hub.root, *shards, "transformer/config.json")
    put(client.here, shards[0], shards[2])
    assert client.locate("transformer/*.safetensors") == [
        str(client.here / MODEL / shard) for shard in shards
    ]


def test_hub_without_such_a_file(client: Client) -> None:
    put(client.hub.root, "vae/diffusion_pytorch_model.safetensors")
    error = client.locate("vea/*.safetensors")
    assert isinstance(error, dict)
    hub_name = "Hugging Face" if client.source == "huggingface" else "ModelScope"
    assert error["what"] == f"{hub_name} has no file {MODEL}:vea/*.safetensors."
    assert error["mend"] == "check model_id and origin_file_pattern"


def test_weights_without_config_load_when_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    """The guard of the test run makes every connection fail, as a machine without network does."""
    put(tmp_path, "vae/diffusion_pytorch_model.safetensors")
    config = ModelConfig(
        model_id=MODEL,
        origin_file_pattern="vae/*.safetensors",
        local_model_path=tmp_path,
        download_source="huggingface",
    )
    assert located(tmp_path, config) == ["vae/diffusion_pytorch_model.safetensors"]


def test_offline_download_error_names_everything(tmp_path: Path) -> None:
    config = ModelConfig(
        model_id=MODEL,
        origin_file_pattern="vae/*.safetensors",
        local_model_path=tmp_path,
        download_source="huggingface",
    )
    with pytest.raises(LoadError) as caught:
        locate(config)
    error = caught.value
    assert (
        error.what
        == f"{MODEL}:vae/*.safetensors is not on this machine and could not be downloaded from Hugging Face."
    )
    assert error.got
    assert error.expected is not None and str(tmp_path / MODEL) in error.expected
    assert error.mend is not None
    for word in (
        str(tmp_path / MODEL),
        "QWENIMAGE_SKIP_DOWNLOAD=True",
        "QWENIMAGE_DOWNLOAD_SOURCE=modelscope",
    ):
        assert word in error.mend
