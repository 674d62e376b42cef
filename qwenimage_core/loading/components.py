"""Finding the components that ModelConfigs name: files located, recognised and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.checkpoint import WEIGHTS, Checkpoint
from qwenimage_core.loading.component import Component
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.placement import Placement
from qwenimage_core.loading.recognise import CORE_COMPONENTS, ComponentSpec, recognise
from qwenimage_core.loading.sources import locate

__all__ = ["NEEDED", "Component", "find_components"]

NEEDED = ("transformer", "text_encoder", "vae")

Place = Callable[[ModelConfig], Placement]


def find_components(
    configs: Sequence[ModelConfig],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    placed: Place | None = None,
    specs: Sequence[ComponentSpec] = CORE_COMPONENTS,
    needed: Collection[str] = NEEDED,
) -> dict[str, list[Component]]:
    """Kind -> components, in the order of `configs`: files found (downloaded where needed), recognised and checked.

    `placed` says where the weights of a config's components are, if they are not to stay on `device` in `dtype`.
    `specs` are the components that can be recognised, the core's and those of plugins. Raises LoadError if a kind in
    `needed` is not among the configs, or two are given of a kind of which the pipeline uses one.
    """
    found: dict[str, list[Component]] = {}
    for config in configs:
        for files in _checkpoints(locate(config)):
            checkpoint = Checkpoint.open(files)
            placement = placed(config) if placed is not None else Placement.resident(device, dtype)
            component = Component(recognise(checkpoint, specs), checkpoint, placement=placement)
            several = found.setdefault(component.spec.kind, [])
            if several and not component.spec.many:
                raise LoadError(
                    f"Two components of the kind {component.spec.kind} are given.",
                    got=f"{several[0].checkpoint.files[0]} and {checkpoint.files[0]}",
                    expected="one",
                    mend="leave one of the two ModelConfigs out",
                )
            several.append(component)
    if absent := [kind for kind in needed if kind not in found]:
        raise _absent(absent, found, specs)
    return found


def _checkpoints(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """The checkpoints in what a ModelConfig stands for: one, or the folders of a repository in hub layout."""
    if len(paths) == 1 and paths[0].is_dir() and not _weights(paths[0], "*"):
        folders = sorted({file.parent for file in _weights(paths[0], "*/*")})
        yield from ([folder] for folder in folders)
        if folders:
            return
    yield paths


def _weights(folder: Path, pattern: str) -> list[Path]:
    return [file for file in folder.glob(pattern) if file.suffix in WEIGHTS]


def _absent(absent: Sequence[str], found: Iterable[str], specs: Sequence[ComponentSpec]) -> LoadError:
    homes = {spec.kind: spec.published for spec in (*CORE_COMPONENTS, *specs) if spec.published}
    lines = [
        f'ModelConfig(model_id="{homes[kind][0]}", origin_file_pattern="{homes[kind][1]}")'
        for kind in absent
        if kind in homes
    ]
    return LoadError(
        "Components are missing: " + ", ".join(absent) + ".",
        got=", ".join(found) or "none",
        expected=", ".join(NEEDED),
        mend="add to model_configs:\n            " + "\n            ".join(lines) if lines else None,
    )
