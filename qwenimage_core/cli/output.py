"""Where pictures are written, and writing them. Nothing is ever replaced unless --overwrite says so.

With `--output NAME` one picture gets that name; several get `-1`, `-2`, ... before the suffix, unless the name holds
{n} or {seed}. Without it, each takes the next free `qwenimage-0001.png` in this folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

from qwenimage_core.errors import QwenImageError, RequestError
from qwenimage_core.metadata import PictureMetadata
from qwenimage_core.picture_files import KINDS, check_target, save_picture
from qwenimage_core.writing import whole_file

TENSORS = ".safetensors"


@dataclass(frozen=True)
class Targets:
    """Where each picture goes. `kind` is the request's output_type, `several` whether pictures are numbered."""

    output: Path | None
    kind: str
    several: bool
    overwrite: bool

    @classmethod
    def of(cls, output: Path | None, seeds: Sequence[int], *, kind: str, overwrite: bool) -> Self:
        """Targets for pictures of these seeds, after checking that every one of them can be written."""
        targets = cls(output, kind, len(seeds) > 1, overwrite)
        if output is None:
            return targets
        paths = [targets.path(number, seed) for number, seed in enumerate(seeds, 1)]
        if len(set(paths)) < len(paths):
            raise RequestError(
                "--output gives several pictures one name.", got=output, mend="put {n} into the name"
            )
        for path in paths:
            targets._check(path)
        return targets

    def paths(self, seeds: Sequence[int]) -> list[Path]:
        """The files for pictures of these seeds, when none is written yet."""
        if self.output is None:
            return list(islice(self._free(), len(seeds)))
        return [self.path(number, seed) for number, seed in enumerate(seeds, 1)]

    def path(self, number: int, seed: int) -> Path:
        """The file for the `number`-th picture of this call, from 1."""
        if self.output is None:
            return next(self._free())
        name = self.output.name
        numbered = self.several or number > 1  # a plugin may decode more pictures than frames
        if numbered and "{n}" not in name and "{seed}" not in name:
            name = f"{self.output.stem}-{{n}}{self.output.suffix}"
        return self.output.with_name(name.replace("{n}", str(number)).replace("{seed}", str(seed)))

    def _free(self) -> Iterator[Path]:
        names = (Path(f"qwenimage-{n:04}{'.png' if self.kind == 'pil' else TENSORS}") for n in count(1))
        return (name for name in names if not name.exists())

    def _check(self, path: Path) -> None:
        if (path.suffix.lower() == TENSORS) != (self.kind != "pil"):
            raise RequestError(
                "--output does not suit --output-type.",
                got=f"{path.name} for {self.kind}",
                expected=f"a picture's suffix for pil, {TENSORS} for tensor and latent",
            )
        suffixes = KINDS if self.kind == "pil" else (TENSORS,)
        check_target(path, overwrite=self.overwrite, suffixes=suffixes)


def save(image: Any, path: Path, metadata: PictureMetadata, *, overwrite: bool) -> Path:
    """A picture, or a tensor as safetensors with the record in its header. Written beside and renamed."""
    if path.suffix.lower() != TENSORS:
        return save_picture(image, path, metadata, overwrite=overwrite)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {metadata.request["output_type"]: image.contiguous().cpu()}
    try:
        with whole_file(path) as beside:
            save_file(content, beside, metadata={"qwenimage": metadata.to_json()})
    except (OSError, SafetensorError) as error:
        raise QwenImageError(f"{path} cannot be written: {error}") from error
    return path
