"""Where pictures are written, and writing them. Nothing is ever replaced unless --overwrite says so.

With `--output NAME` one picture gets that name; several get `-1`, `-2`, ... before the suffix, unless the name holds
{n} or {seed}. Without it, names count up from the first free `qwenimage-0001.png` in this folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from qwenimage_core.errors import QwenImageError, RequestError
from qwenimage_core.metadata import KINDS, PictureMetadata, check_target, save_picture

TENSORS = ".safetensors"


def targets(output: Path | None, seeds: Sequence[int], *, kind: str, overwrite: bool) -> list[Path]:
    """One path for each entry of `seeds`; every one can be written. `kind` is the request's output_type."""
    suffix = ".png" if kind == "pil" else TENSORS
    if output is None:
        first = next(n for n in count(1) if not _taken(n, len(seeds), suffix))
        return [Path(f"qwenimage-{first + i:04}{suffix}") for i in range(len(seeds))]
    name = output.name
    if len(seeds) > 1 and "{n}" not in name and "{seed}" not in name:
        name = f"{output.stem}-{{n}}{output.suffix}"
    names = [name.replace("{n}", str(i)).replace("{seed}", str(seed)) for i, seed in enumerate(seeds, 1)]
    if len(set(names)) < len(names):
        raise RequestError(
            "--output gives several pictures one name.", got=output, mend="put {n} into the name"
        )
    paths = [output.with_name(n) for n in names]
    for path in paths:
        if (path.suffix.lower() == TENSORS) != (kind != "pil"):
            raise RequestError(
                "--output does not suit --output-type.",
                got=f"{path.name} for {kind}",
                expected=f"a picture's suffix for pil, {TENSORS} for tensor and latent",
            )
        check_target(path, overwrite=overwrite, suffixes=KINDS if kind == "pil" else (TENSORS,))
    return paths


def _taken(first: int, number: int, suffix: str) -> bool:
    return any(Path(f"qwenimage-{first + i:04}{suffix}").exists() for i in range(number))


def save(image: Any, path: Path, metadata: PictureMetadata, *, overwrite: bool) -> Path:
    """A picture, or a tensor as safetensors with the record in its header. Written beside and renamed."""
    if path.suffix.lower() != TENSORS:
        return save_picture(image, path, metadata, overwrite=overwrite)
    from safetensors.torch import save_file

    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = {metadata.request["output_type"]: image.contiguous().cpu()}
    try:
        save_file(content, beside, metadata={"qwenimage": metadata.to_json()})
        beside.replace(path)
    except OSError as error:
        raise QwenImageError(f"{path} cannot be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return path
