"""A checkpoint: the tensors of one component, in one file or in shards, known by their headers and read one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.encoding import Stored
from qwenimage_core.loading.float8 import join_scales
from qwenimage_core.loading.gguf_file import read_gguf
from qwenimage_core.loading.nf4 import join_blocks
from qwenimage_core.loading.safetensors_file import TensorInfo, read_header, read_pieces, read_tensor
from qwenimage_core.loading.shards import (
    INDEX_SUFFIX,
    absent_shards,
    check_index,
    indexes_of,
    read_index,
    read_json,
    series_of,
)

if TYPE_CHECKING:
    import torch

WEIGHTS = (".safetensors", ".gguf")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DIGEST_WHOLE = 256 * 2**20
DIGEST_BLOCK = 2**20
DIGEST_BLOCKS = 64


class Checkpoint:
    """Names, shapes, dtypes and places of tensors. Opening one reads headers only; `read` reads one tensor.

    Tensors are logical: where a file holds a weight in parts (numbers and scales), they are one tensor here, and `read`
    decodes it. `tensors` maps the names in the files to TensorInfo; `files` are the weight files; `config` is the
    content of the config.json beside them, or None; `metadata` is what the files' headers carry beside the tensors.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        files: Sequence[Path],
        metadata: Mapping[str, str],
    ) -> None:
        self.tensors = tensors
        self.files = tuple(files)
        self.metadata = metadata

    @classmethod
    def open(cls, paths: Path | str | Sequence[Path | str], *, allow_pickle: bool = False) -> Checkpoint:
        """Open a file, a list of shards, an index or a folder that holds one checkpoint.

        Raises LoadError, before any tensor is read, for missing shards, files that are damaged or cut off, an index
        that disagrees with its shards, a tensor in two files, and pickled weights. `allow_pickle` loads those with
        torch's restricted reader (weights_only), as a whole.
        """
        given = [paths] if isinstance(paths, Path | str) else list(paths)
        if not given:
            raise LoadError(
                "No files are given.", expected="a safetensors file, or the shards of one checkpoint"
            )
        files = [file for path in given for file in _weight_files(Path(path))]
        if absent := absent_shards(files):
            there = [file for file in absent if file.exists()]
            raise LoadError(
                f"{files[0].parent} holds an incomplete checkpoint: {len(absent)} of its files are missing.",
                got="missing "
                + ", ".join(file.name for file in absent[:5])
                + (", ..." if len(absent) > 5 else ""),
                expected=f"{len(files) + len(absent)} files",
                mend="name all of them, or their folder" if there else "download the missing files",
            )
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        for file in files:
            if file.suffix in PICKLES:
                found = _open_pickle(file, allow_pickle)
            else:
                found, more = read_gguf(file) if file.suffix == ".gguf" else read_header(file)
                metadata.update(more)
            _refuse_doubles(tensors, found, file)
            tensors.update(found)
        for index in indexes_of(files):
            check_index(index, tensors)
        return cls(join_scales(join_blocks(tensors)), files, metadata)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The config.json beside the weights, or None where there is none."""
        path = self.files[0].parent / "config.json"
        return read_json(path) if path.is_file() else None

    def read(
        self,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        buffer: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One tensor. `dtype` None leaves the stored dtype; integer and boolean tensors keep theirs in any case.

        With a `buffer` (flat, uint8, large enough) the bytes are read into it; the result may be a view of it.
        """
        stored = self.read_stored(name, buffer)
        tensor = stored.decode(*stored.parts)
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    def read_stored(self, name: str, buffer: torch.Tensor | None = None) -> Stored:
        """One tensor as it is in the file, on the CPU, with what decodes it. Only its first part uses the buffer, the
        scales beside it are small."""
        if name not in self.tensors:
            raise LoadError(f"{self.files[0]} has no tensor {name!r}.")
        info = self.tensors[name]
        if info.encoding is None:
            return Stored((read_tensor(info, buffer),), _as_it_is)
        first, *others = info.encoding.parts
        parts = (read_tensor(first, buffer), *(read_tensor(part) for part in others))
        return Stored(parts, info.encoding.decode)

    def plain(self, name: str) -> bool:
        """Whether a tensor's values are in the file one after the other."""
        info = self.tensors[name]
        return info.value is None and info.encoding is None

    def pieces(self, name: str, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
        """The values of a plain tensor, a buffer full at a time."""
        return read_pieces(self.tensors[name], buffer)

    @cached_property
    def _digest(self) -> str:
        combined = hashlib.sha256()
        whole = True
        for file in sorted(self.files, key=lambda file: file.name):
            size = file.stat().st_size
            whole = whole and size <= DIGEST_WHOLE
            combined.update(hashlib.sha256(size.to_bytes(8, "little") + _blocks(file, size)).digest())
        return ("sha256:" if whole else "sha256-sampled:") + combined.hexdigest()

    def digest(self) -> str:
        """A name for exactly these weights, whatever their folder is called: "sha256:<hex>".

        It is the SHA-256 over one SHA-256 a file (its size, then its content), files in the order of their names. Of
        a file above 256 MiB 64 blocks of 1 MiB, evenly spaced from the first byte to the last, stand for the content
        (the header is in the first ones): enough to tell fine-tunes apart without reading 40 GB, no protection
        against forgery. The digest then begins with "sha256-sampled:".
        """
        return self._digest


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _blocks(file: Path, size: int) -> bytes:
    """The SHA-256 of a file's content, or of evenly spaced blocks of a large one."""
    state = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= DIGEST_WHOLE:
            while block := stream.read(DIGEST_BLOCK):
                state.update(block)
        else:
            for number in range(DIGEST_BLOCKS):
                stream.seek((size - DIGEST_BLOCK) * number // (DIGEST_BLOCKS - 1))
                state.update(stream.read(DIGEST_BLOCK))
    return state.digest()


def _weight_files(path: Path) -> list[Path]:
    """The weight files that a path stands for: itself, what an index lists, or the one checkpoint in a folder."""
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return read_index(path).files
    if path.is_file():
        if path.suffix not in (*WEIGHTS, *PICKLES):
            raise LoadError(
                f"{path} is no weight file.", got=path.suffix or "no suffix", expected=" or ".join(WEIGHTS)
            )
        return [path]
    if not path.is_dir():
        raise LoadError(f"{path} does not exist.", expected="a safetensors file or a folder with some")
    there = sorted(path.iterdir())
    files = [file for file in there if file.suffix in WEIGHTS] or [f for f in there if f.suffix in PICKLES]
    series = {series_of(file) for file in files}
    indexes = sorted(path.glob("*" + INDEX_SUFFIX))
    if not files and not indexes:
        raise LoadError(f"{path} holds no weights.", got=_names(path.iterdir()), expected="*.safetensors")
    if len(series) > 1 or len(indexes) > 1:
        raise LoadError(
            f"{path} holds more than one checkpoint.",
            got=_names([*files, *indexes]),
            expected="one file, or the shards of one checkpoint",
            mend=f'name the files: path="{files[0] if files else indexes[0]}"',
        )
    return files or read_index(indexes[0]).files


def _names(paths: Iterable[Path]) -> str:
    names = sorted(path.name for path in paths)
    return (", ".join(names[:6]) + (", ..." if len(names) > 6 else "")) or "nothing"


def _refuse_doubles(known: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], file: Path) -> None:
    double = next((name for name in found if name in known), None)
    if double is not None:
        raise LoadError(
            f"The tensor {double!r} is in two files.",
            got=f"{known[double].file} and {file}",
            expected="each tensor once",
            mend="name only the files of one checkpoint",
        )


def _open_pickle(file: Path, allowed: bool) -> dict[str, TensorInfo]:
    if not allowed:
        raise LoadError(
            f"{file} is a pickle, which can run code when it is opened.",
            got=file.suffix,
            expected=".safetensors",
            mend="look for a safetensors version, or convert the file in a place you trust",
        )
    import pickle

    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise LoadError(
            f"{file} cannot be read.", got=str(error)[:200], expected="a dictionary of tensors"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise LoadError(f"{file} holds something else than tensors.", expected="a dictionary of tensors")
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in content.items()}
    return {
        name: TensorInfo(tuple(value.shape), kinds[name], file, 0, value.nbytes, value=value)
        for name, value in content.items()
    }
