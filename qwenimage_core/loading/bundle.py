"""The short forms of `from_pretrained`: one name becomes everything that a pipeline is made of.

A name is a folder in hub layout, an installed model ("tiny", through the entry-point group `qwenimage.models`) or a
hub id. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from qwenimage_core.errors import LoadError, PluginError
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.shards import read_json
from qwenimage_core.loading.sources import locate

MODELS_GROUP = "qwenimage.models"
MODEL_INDEX = "model_index.json"

WEIGHTS: Mapping[str, str] = {
    "transformer": "transformer/diffusion_pytorch_model*.safetensors",
    "text_encoder": "text_encoder/model*.safetensors",
    "vae": "vae/diffusion_pytorch_model*.safetensors",
}
FOLDERS = ("tokenizer", "processor", "scheduler")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Where the parts of one model are: weights as ModelConfigs, and those of the other folders that it has."""

    models: tuple[ModelConfig, ...]
    tokenizer: ModelConfig | None = None
    processor: ModelConfig | None = None
    scheduler: ModelConfig | None = None
    folder: Path | None = None


def find_bundle(name: str | Path) -> Bundle:
    """The parts of the model called `name`; a folder of that name comes first, then installed models, then hubs.

    Nothing is downloaded yet but a hub's model_index.json. Raises LoadError for a name that is none of these, and
    PluginError for an installed model that cannot be had.
    """
    path = Path(name).expanduser()
    text = str(name)
    if path.exists():
        return _local(path)
    installed = {entry.name: entry for entry in entry_points(group=MODELS_GROUP)}
    if text in installed:
        return _local(_installed(installed[text]))
    if text == "tiny":
        raise PluginError(
            'The embedded model "tiny" is not installed.',
            expected=f"a package that offers it ({MODELS_GROUP}: tiny)",
            mend='pip install "qwenimage-core[tiny]"',
        )
    if isinstance(name, str) and text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _hub(text)
    known = sorted({*installed, "tiny"})
    near = get_close_matches(text, known, n=1)
    raise LoadError(
        f"There is no model {text!r}.",
        expected=f'a folder, a hub id as "Qwen/Qwen-Image", or one of {", ".join(known)}',
        mend=f"did you mean {near[0]!r}?" if near else "check the name",
    )


def _local(path: Path) -> Bundle:
    """A folder in hub layout; any other path is left for recognition to judge."""
    parts = {part for part in (*WEIGHTS, *FOLDERS) if (path / part).is_dir()}
    if not parts & WEIGHTS.keys():
        return Bundle(models=(ModelConfig(path=str(path)),))
    listed = _listed(read_json(path / MODEL_INDEX)) if (path / MODEL_INDEX).is_file() else parts
    if absent := sorted((listed & {*WEIGHTS, *FOLDERS}) - parts):
        raise LoadError(
            f"{path} is incomplete: {MODEL_INDEX} lists folders that are not there.",
            got=", ".join(sorted(parts)),
            expected=", ".join(f"{part}/" for part in absent) + " as well",
            mend="copy or download the whole model again",
        )
    folders = {part: ModelConfig(path=str(path / part)) for part in FOLDERS if part in parts}
    models = tuple(ModelConfig(path=str(path / part)) for part in WEIGHTS if part in parts)
    return Bundle(models=models, folder=path, **folders)


def _hub(model_id: str) -> Bundle:
    """A repository in hub layout. Its model_index.json says which folders it has; without one, those that are here."""
    config = ModelConfig(model_id=model_id, origin_file_pattern=MODEL_INDEX)
    root = config.base_folder() / model_id
    try:
        listed = _listed(read_json(locate(config)[0]))
    except LoadError:
        listed = {part for part in (*WEIGHTS, *FOLDERS) if (root / part).is_dir()}
        if not listed & WEIGHTS.keys():
            raise
    folders = {
        part: ModelConfig(model_id=model_id, origin_file_pattern=f"{part}/")
        for part in FOLDERS
        if part in listed
    }
    models = tuple(
        ModelConfig(model_id=model_id, origin_file_pattern=pattern)
        for part, pattern in WEIGHTS.items()
        if part in listed
    )
    return Bundle(models=models, folder=root, **folders)


def _listed(index: Mapping[str, Any]) -> set[str]:
    """The component folders of a model_index.json: its entries that name a library and a class."""
    return {
        part for part, value in index.items() if isinstance(value, list) and len(value) == 2 and all(value)
    }


def _installed(entry: EntryPoint) -> Path:
    """The folder of an installed model. Its code may be anything, so any failure is told as its own."""
    try:
        find: Callable[[], str | Path] = entry.load()
        folder = Path(find())
    except Exception as error:
        raise PluginError(
            f"The installed model {entry.name!r} cannot be had.",
            got=f"{entry.value}: {type(error).__name__}: {error}",
            mend=f"reinstall the package that offers it, or give its folder instead of {entry.name!r}",
        ) from error
    if not folder.is_dir():
        raise PluginError(
            f"The installed model {entry.name!r} has no folder.", got=folder, expected=entry.value
        )
    return folder


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer in a folder, through transformers: local files only, no code from the folder."""
    folder = Path(folder)
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise LoadError(
            f"{folder} holds no tokenizer.",
            got=", ".join(sorted(there)[:6]) or "nothing",
            expected="tokenizer.json, or vocab.json and merges.txt",
            mend='bring it with ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="tokenizer/")',
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged JSON, unknown classes: the library raises many kinds
        raise LoadError(
            f"The tokenizer in {folder} cannot be read.", got=f"{type(error).__name__}: {error}"
        ) from error
