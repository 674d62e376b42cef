"""From a `ModelConfig` to files on this machine, downloading what is not there yet.

Downloads land in <base folder>/<owner>/<name>/..., as the hub has them; files put there by hand are used as they are.
The hub's own clients do the downloading (a file appears under its name only when it is whole).
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.shards import INDEX_SUFFIX, absent_shards, stay_inside

WHOLE = ("*",)
HUBS = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}


def locate(config: ModelConfig) -> tuple[Path, ...]:
    """The files (or the one folder) that a ModelConfig stands for, downloaded where needed.

    Weights that are complete on this machine are never looked up again. Raises LoadError where files are missing and
    cannot be had.
    """
    if config.path is not None:
        for path in config.path:
            _must_exist(path)
        return config.path
    assert config.model_id is not None  # one of the two, see ModelConfig
    root = config.base_folder() / config.model_id
    patterns = config.origin_file_pattern or WHOLE
    found = _find(root, patterns)
    if not config.offline() and not _complete(root, patterns, found):
        try:
            _download(config, root, [*patterns, *_companions(patterns)])
        except LoadError:
            # Weights without their config.json still load: their shapes tell most of it.
            if not found or absent_shards(found):
                raise
        found = _find(root, patterns)
    if not found:
        raise _nothing(config, root)
    return (root,) if patterns == WHOLE else tuple(found)


def locate_folder(config: ModelConfig) -> Path:
    """The folder of a ModelConfig that stands for one (a tokenizer, a processor), downloaded where needed."""
    found = locate(config)
    folders = {path if path.is_dir() else path.parent for path in found}
    if len(folders) != 1:
        raise LoadError(
            f"{config} is not one folder.", got=f"files of {len(folders)} folders", expected='as "tokenizer/"'
        )
    return folders.pop()


def _must_exist(path: Path) -> None:
    if path.exists():
        return
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = [child.name for child in folder.iterdir()]
    near = get_close_matches(path.name, names, n=1)
    raise LoadError(
        f"{path} does not exist.",
        got=f"{folder} holds {', '.join(sorted(names)[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}",
        expected="a safetensors file, or a folder with some",
        mend=f"did you mean {folder / near[0]}?" if near else "check the path",
    )


def _find(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = sorted(
        {path for pattern in patterns for path in root.glob(pattern) if not path.name.startswith(".")}
    )
    for path in found:
        stay_inside(root, path)
    return found


def _complete(root: Path, patterns: tuple[str, ...], found: list[Path]) -> bool:
    """Whether a download could bring nothing that matters: no missing shard, and the config.json of a weights folder.

    A whole repository is always compared with the hub: nothing here says what belongs to it.
    """
    if not found or patterns == WHOLE or absent_shards(found):
        return False
    configs = [root / name for name in _companions(patterns) if name.endswith("/config.json")]
    return all(path.exists() for path in configs)


def _companions(patterns: tuple[str, ...]) -> list[str]:
    """Patterns of the files that weights need beside them and that patterns of published examples leave out."""
    folders = dict.fromkeys(
        PurePosixPath(pattern).parent for pattern in patterns if pattern.endswith((".safetensors", ".gguf"))
    )
    return [str(folder / name) for folder in folders for name in ("config.json", "*" + INDEX_SUFFIX)]


def _download(config: ModelConfig, root: Path, patterns: list[str]) -> None:
    source = config.source()
    try:
        if source == "modelscope":
            from modelscope import snapshot_download as from_modelscope

            from_modelscope(
                config.model_id, revision=config.revision, local_dir=str(root), allow_file_pattern=patterns
            )
        else:
            from huggingface_hub import snapshot_download as from_huggingface

            from_huggingface(
                str(config.model_id), revision=config.revision, local_dir=str(root), allow_patterns=patterns
            )
    except (
        Exception
    ) as error:  # each hub's client has its own families of errors, and the network adds its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise LoadError(
            f"{config} is not on this machine and could not be downloaded from {HUBS[source]}.",
            got=f"{type(error).__name__}: {reason}",
            expected=f"its files in {root}, or a way to the network",
            mend=_by_hand(root, source),
        ) from error


def _nothing(config: ModelConfig, root: Path) -> LoadError:
    if config.offline():
        what, mend = (
            f"{config} is not on this machine, and downloading is switched off.",
            _by_hand(root, config.source()),
        )
    else:
        what = f"{HUBS[config.source()]} has no file {config}."
        mend = "check model_id and origin_file_pattern"
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    return LoadError(
        what, got=f"{root} holds {', '.join(there[:6]) or 'nothing'}", expected=str(config), mend=mend
    )


def _by_hand(root: Path, source: str) -> str:
    other = "huggingface" if source == "modelscope" else "modelscope"
    return (
        f"put the files into {root.absolute()} by hand and set QWENIMAGE_SKIP_DOWNLOAD=True, "
        f"or try the other hub: QWENIMAGE_DOWNLOAD_SOURCE={other}"
    )
