"""The files of a cache: one safetensors file a sample, a line in an index for each, and a manifest when all are there.

    manifest.json           what the cache was made from, and every file with its digest
    index-PROCESS.jsonl     the same for files that are done, line by line, while the cache is made
    samples/00000012.safetensors, samples/00000012.no-caption.safetensors, ...

A file appears whole or not at all. Content is tensors and JSON: opening a cache runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from qwenimage_core.writing import whole_file
from qwenimage_training.cache.frozen import Frozen
from qwenimage_training.errors import TrainingError

FORMAT = 1
MANIFEST, SAMPLES, INDEX = "manifest.json", "samples", "index-*.jsonl"
FACTS = "qwenimage_training"
Left = tuple[bool, bool]
"""What is left out of a sample: (its caption, its conditions)."""
SUFFIXES: Mapping[Left, str] = {
    (False, False): "",
    (True, False): ".no-caption",
    (False, True): ".no-condition",
    (True, True): ".no-caption-no-condition",
}


@dataclass(frozen=True)
class Entry:
    """A finished file. `made_from` is the digest of its row, of what is left out, and of the cache's inputs; `models`
    are the kinds of components that ran for it."""

    file: str
    made_from: str
    sha256: str
    models: Sequence[str] = ()


def file_of(record: int, left: Left) -> str:
    return f"{SAMPLES}/{record:08d}{SUFFIXES[left]}.safetensors"


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sample(
    folder: Path, file: str, made_from: str, frozen: Frozen, models: Sequence[str] = ()
) -> Entry:
    """Write a sample."""
    content = save(
        {name: t.detach().cpu().contiguous() for name, t in frozen.tensors.items()},
        {"format": "pt", FACTS: json.dumps(frozen.facts)},
    )
    write_whole(folder / file, content)
    return Entry(file, made_from, hashlib.sha256(content).hexdigest(), list(models))


def write_whole(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written.", got=error.strerror, mend="make room and run the same command again"
        ) from error


def read_sample(folder: Path, entry: Entry) -> Frozen:
    """A sample as it was written; TrainingError for a file that is not what the manifest says."""
    path = folder / entry.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _broken(path, error.strerror or "unreadable") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise _broken(path, "other content than when it was made")
    try:
        length = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][FACTS])
        return Frozen(load(content), facts)
    except (ValueError, KeyError, SafetensorError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, why: str) -> TrainingError:
    return TrainingError(
        f"{path.name} of the cache is not as it was written.",
        got=why,
        expected="the file that manifest.json names",
        mend="delete it and run the data_process task again: it makes what is missing",
    )


def append(folder: Path, process: int, entry: Entry) -> None:
    with (folder / INDEX.replace("*", str(process))).open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps(asdict(entry)) + "\n")  # what was there may end in half a line


def finished(folder: Path) -> dict[str, Entry]:
    """File -> what the indices say of it, of files that are there."""
    found: dict[str, Entry] = {}
    for index in sorted(folder.glob(INDEX)):
        for line in index.read_text(encoding="utf-8").splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # half a line: the run was killed while it wrote
            if (folder / entry.file).is_file():
                found[entry.file] = entry
    return found


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the cache says of itself; None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no manifest of a cache.", got=str(error)[:200]) from error
    if version != FORMAT:
        raise TrainingError(
            f"{folder} is a cache of another form.", got=version, expected=FORMAT, mend="make it again"
        )
    return dict(found)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    write_whole(folder / MANIFEST, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def clear(folder: Path) -> None:
    """Take a cache away: its own files and no others."""
    for path in _own(folder):
        path.unlink()


def _own(folder: Path) -> Iterator[Path]:
    yield from folder.glob(MANIFEST)
    yield from folder.glob(INDEX)
    for path in (folder / SAMPLES).glob("*.safetensors"):
        if path.name[:8].isdigit():
            yield path
