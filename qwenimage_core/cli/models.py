"""`models list`: what is on this machine, read from headers, and the components that are recognised."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from qwenimage_core.catalogue import extra_named
from qwenimage_core.cli.report import columns
from qwenimage_core.cli.session import Json
from qwenimage_core.errors import QwenImageError
from qwenimage_core.loading.bundle import MODELS_GROUP, WEIGHTS, find_bundle
from qwenimage_core.loading.checkpoint import WEIGHTS as WEIGHT_FILES
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.recognise import CORE_COMPONENTS, ComponentSpec, recognise
from qwenimage_core.registry import PluginRegistry

app = typer.Typer(help="See which models are on this machine.", no_args_is_help=True)

MIB = 2**20


@app.callback()
def models() -> None:
    """See which models are on this machine."""


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List installed models, model folders under ./models (or QWENIMAGE_MODEL_BASE_PATH), and known components."""
    base = ModelConfig(model_id="any/any").base_folder()
    specs = _specs()
    found = [*_installed(specs), *_local(base, specs)]
    published = {s.kind: s.published for s in specs if s.published}
    kinds = [{"kind": kind, "model_id": where[0], "files": where[1]} for kind, where in published.items()]
    if as_json:
        print(json.dumps({"folder": str(base), "models": found, "components": kinds}))
        return
    if found:
        rows = [row for model in found for row in _rows(model)]
        print(columns(("model", "component", "weights", "state"), *rows))
    else:
        tiny = extra_named("tiny")
        print(f"No model is here ({base}). The embedded one: {tiny.pip if tiny else ''}")
    print("\nThe published components and where they come from:")
    print(columns(("component", "model id", "files"), *(tuple(kind.values()) for kind in kinds)))


def _rows(model: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A line for each component, the model's name on the first."""
    for number, part in enumerate(model["components"] or [{}]):
        size = f"{part['bytes'] / MIB:.1f} MiB" if "bytes" in part else "-"
        state = part.get("error") or model["error"] or "complete"
        yield model["name"] if number == 0 else "", part.get("kind", "-"), size, state


def _installed(specs: Sequence[ComponentSpec]) -> list[dict[str, Any]]:
    """Models that come with a package, as the embedded one."""
    found = []
    for point in sorted(entry_points(group=MODELS_GROUP), key=lambda p: p.name):
        model: dict[str, Any] = {"name": point.name, "folder": None, "components": [], "error": None}
        model["distribution"] = f"{point.dist.name} {point.dist.version}" if point.dist else None
        try:
            folder = find_bundle(point.name).folder
        except QwenImageError as error:
            model["error"] = error.what
        else:
            if folder is not None:
                model |= {"folder": str(folder), "components": _components(folder, specs)}
        found.append(model)
    return found


def _local(base: Path, specs: Sequence[ComponentSpec]) -> list[dict[str, Any]]:
    """Models below `base`: folders in hub layout, and folders with weights of their own, as hubs name them."""
    weights = {
        file.parent
        for depth in (1, 2, 3)
        for kind in WEIGHT_FILES
        for file in base.glob("*/" * depth + f"*{kind}")
    }
    homes = {folder.parent if folder.name in WEIGHTS else folder for folder in weights}
    return [
        {
            "name": str(home.relative_to(base)),
            "folder": str(home),
            "distribution": None,
            "components": _components(home, specs),
            "error": None,
        }
        for home in sorted(homes)
    ]


def _components(folder: Path, specs: Sequence[ComponentSpec]) -> list[dict[str, Any]]:
    """Every folder with weights, what it holds, and whether it is complete. Headers only."""
    found = []
    for part in sorted(
        {f.parent for pattern in ("*", "*/*") for kind in WEIGHT_FILES for f in folder.glob(pattern + kind)}
    ):
        entry: dict[str, Any] = {"folder": str(part.relative_to(folder)), "kind": part.name}
        try:
            checkpoint = Checkpoint.open(part)
            entry |= {"bytes": checkpoint.nbytes, "tensors": len(checkpoint.tensors)}
            entry["kind"] = recognise(checkpoint, specs).kind
        except QwenImageError as error:
            entry["error"] = error.what
        found.append(entry)
    return found


def _specs() -> tuple[ComponentSpec, ...]:
    """The core's components and those of every plugin that can be loaded."""
    registry = PluginRegistry.discover()
    registry.load_all()
    return (*CORE_COMPONENTS, *(s for plugin in registry.loaded for s in plugin.call("components") or ()))
