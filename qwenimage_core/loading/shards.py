"""Which files make up one checkpoint: shards numbered `name-00002-of-00009`, and the index that lists their tensors.

Names that come out of an index are data from elsewhere: they must be plain file names in the index's own folder.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.safetensors_file import AGAIN, TensorInfo

INDEX_SUFFIX = ".safetensors.index.json"
JSON_LIMIT = 64 * 2**20

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True)
class Index:
    """A `*.safetensors.index.json`: tensor name -> file beside it, and the bytes of all tensors together."""

    path: Path
    weight_map: Mapping[str, str]
    total_size: int | None

    @property
    def files(self) -> list[Path]:
        """The shards, each once, in the order of their names."""
        return [self.path.parent / name for name in sorted(set(self.weight_map.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MiB. Raises LoadError for anything else."""
    size = path.stat().st_size
    if size > JSON_LIMIT:
        raise LoadError(
            f"{path} is too large.", got=f"{size:,} bytes", expected=f"at most {JSON_LIMIT:,} bytes"
        )
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is damaged.", got=str(error)[:200], expected="JSON", mend=AGAIN) from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} is damaged.", got=type(value).__name__, expected="a JSON object", mend=AGAIN)
    return value


def read_index(path: Path) -> Index:
    """An index, after checking that it names files of its own folder only."""
    content = read_json(path)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(
            f"{path} has no weight_map.", got=f"keys {sorted(content)[:5]}", expected="weight_map", mend=AGAIN
        )
    for name in set(map(str, weight_map.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise LoadError(
                f"{path} names a file outside its folder, or of another kind.",
                got=name,
                expected="a safetensors file",
            )
        stay_inside(path.parent, path.parent / name)
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(path, weight_map, int(total) if isinstance(total, int | float) else None)


def stay_inside(root: Path, path: Path) -> None:
    """Refuse a path that leads out of `root`, by name or by link.

    Links into the blobs of a Hugging Face cache (<repository>/snapshots/<revision>/... -> <repository>/blobs/...) are
    that cache's own layout and allowed.
    """
    real, inside = path.resolve(), root.resolve()
    allowed = [inside] + [parent.parent / "blobs" for parent in inside.parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise LoadError(
            f"{path} leads out of its folder.",
            got=real,
            expected=f"a file under {inside}",
            mend=f'give it as path="{real}"',
        )


def indexes_of(files: Iterable[Path]) -> list[Index]:
    """The indexes beside these files that list at least one of them."""
    given = set(files)
    folders = sorted({file.parent for file in given})
    found = [read_index(path) for folder in folders for path in sorted(folder.glob("*" + INDEX_SUFFIX))]
    return [index for index in found if given & set(index.files)]


def series_of(file: Path) -> str:
    """What the shards of one checkpoint have in common in their names; the whole name of an unnumbered file."""
    match = _NUMBERED.fullmatch(file.name)
    return f"{match['stem']}-of-{match['total']}{match['suffix']}" if match else file.name


def absent_shards(files: Sequence[Path]) -> list[Path]:
    """Files that belong to the same checkpoints as `files`, told by index or by number, and are not among them."""
    absent = {file for index in indexes_of(files) for file in index.files} - set(files)
    series: dict[tuple[Path, str, str, int], set[int]] = defaultdict(set)
    for file in files:
        if match := _NUMBERED.fullmatch(file.name):
            key = (file.parent, match["stem"], match["suffix"], int(match["total"]))
            series[key].add(int(match["number"]))
    for (folder, stem, suffix, total), numbers in series.items():
        for number in set(range(1, total + 1)) - numbers:
            absent.add(folder / f"{stem}-{number:05}-of-{total:05}{suffix}")
    return sorted(absent)


def check_index(index: Index, tensors: Mapping[str, TensorInfo]) -> None:
    """Compare an index with the headers of its shards: the same tensors, in the same files, of the same total size."""
    for name, file in index.weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            where = f"it is in {tensors[name].file.name}" if name in tensors else "it is in no shard"
            raise LoadError(
                f"{index.path} lists the tensor {name!r} in {file}, which does not hold it.",
                got=where,
                mend="download the shards and their index again, from one revision",
            )
    inside = {name: info for name, info in tensors.items() if info.file in set(index.files)}
    stray = next((name for name in inside if name not in index.weight_map), None)
    if stray is not None:
        raise LoadError(
            f"{inside[stray].file} holds the tensor {stray!r}, which {index.path.name} does not list.",
            mend="download the shards and their index again, from one revision",
        )
    total = sum(info.nbytes for info in inside.values())
    if index.total_size is not None and index.total_size != total:
        raise LoadError(
            f"The shards of {index.path} are not of the size it states.",
            got=f"{total:,} bytes of tensors",
            expected=f"{index.total_size:,} bytes",
            mend="download the shards and their index again, from one revision",
        )
