"""`again PICTURE`: the same picture from the record in it, bit for bit on the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenimage_core.cli.output import save
from qwenimage_core.cli.session import (
    Json,
    Overwrite,
    PluginFiles,
    Session,
    open_session,
    progress,
    show_peak,
    show_plan,
)
from qwenimage_core.errors import LoadError, QwenImageError, RequestError
from qwenimage_core.metadata import PICTURE, PictureMetadata, find_picture, versions
from qwenimage_core.parallel.launch import Launch
from qwenimage_core.picture_files import check_target, read_metadata
from qwenimage_core.registry import PluginRegistry

if TYPE_CHECKING:
    from qwenimage_core.plan import Plan

Source = Annotated[
    Path, typer.Argument(metavar="PICTURE", help="a picture made by qwenimage", show_default=False)
]
Target = Annotated[
    Path | None, typer.Option("--output", "-o", help="file to write (default: PICTURE-again beside it)")
]
Force = Annotated[bool, typer.Option("--force", help="go on although versions or weights differ")]
OtherMemory = Annotated[
    str | None, typer.Option("--memory", help="another limit on memory than the one it was made with")
]
OtherModel = Annotated[str | None, typer.Option("--model", "-m", help="where the model is now")]


def again(
    picture: Source,
    output: Target = None,
    force: Force = False,
    model: OtherModel = None,
    memory: OtherMemory = None,
    overwrite: Overwrite = False,
    plugin: PluginFiles = None,
    as_json: Json = False,
) -> None:
    """Make the same picture again from what is written in it.

    Plugin files are never run because a picture names them: give them with --plugin.
    """
    if Launch.found() is not None:
        raise RequestError(
            "`again` draws one picture in one process.", got="several", mend="start it without torchrun"
        )
    record = read_metadata(picture)
    target = output or picture.with_name(f"{picture.stem}-again{picture.suffix}")
    check_target(target, overwrite=overwrite)
    if record.unrecorded:
        raise LoadError("Some of the request had no form as text.", got=", ".join(record.unrecorded))
    source = model or record.model.source
    if source is None:
        raise LoadError(
            "The picture was made from model configs in Python.", mend="give the model with --model"
        )
    registry = PluginRegistry.discover(plugin or ())
    _agree(_other_versions(record, registry), force)
    loras = _loras(record)
    request = {name: _restored(record.request[name], picture.parent) for name in record.given}
    session = open_session(
        source,
        registry,
        dtype=record.model.dtype,
        device=record.model.device,
        loras=loras,
        low_memory=record.model.low_memory and memory is None,
        memory=record.model.memory if memory is None else memory,
        compiled=record.model.compiled,
    )
    (plan,) = session.pipe.plans(**request, progress_bar_cmd=progress)
    _agree(_other_weights(record, session, plan), force)
    if not as_json:
        show_plan(session, [plan])
    with session.pipe.keeper.watch() as peak:
        (drawn,) = session.pipe.run(plan)
    image = drawn[record.output] if isinstance(drawn, list) else drawn
    path = save(image, target, session.describe(plan, plan.seeds[0], record.output), overwrite=overwrite)
    if as_json:
        print(json.dumps({"path": str(path), "seed": plan.seeds[0], "peak_bytes": peak.bytes}))
    else:
        print(path)
        show_peak(peak.bytes)


def _agree(differences: list[str], force: bool) -> None:
    if differences and not force:
        raise QwenImageError(
            "The picture was made with other versions or weights, so it may come out different.",
            got="\n            ".join(differences),
            mend="install what was used, or go on with --force",
        )


def _other_versions(record: PictureMetadata, registry: PluginRegistry) -> list[str]:
    here = versions()
    found = [
        f"{name}: made with {used}, here {here.get(name, 'unknown')}"
        for name, used in record.versions.items()
        if here.get(name) != used
    ]
    for used in record.plugins:
        plugin = registry.get(used.name)  # without it nothing can be made: its own error, --force or not
        if plugin.version != used.version:
            found.append(f"plugin {used.name}: made with {used.version}, here {plugin.version}")
    return found


def _other_weights(record: PictureMetadata, session: Session, plan: Plan) -> list[str]:
    pairs: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = [
        ("component", record.components, session.digests(plan)),
        ("LoRA", {a.name: a.digest for a in record.adapters}, {a.name: a.digest for a in session.adapters}),
    ]
    return [
        f"{kind} {name}: made with {used.get(name, 'none')}, here {here.get(name, 'none')}"
        for kind, used, here in pairs
        for name in sorted({*used, *here})
        if used.get(name) != here.get(name)
    ]


def _loras(record: PictureMetadata) -> list[tuple[str, float]]:
    for adapter in record.adapters:
        if adapter.source is None or not Path(adapter.source).is_file():
            raise LoadError(
                f"The LoRA {adapter.name} is not there.", got=adapter.source, expected=adapter.digest
            )
    return [(str(a.source), a.strength) for a in record.adapters]


def _restored(value: Any, beside: Path) -> Any:
    """A recorded value with its input pictures opened again."""
    if isinstance(value, dict):
        if set(value) == {PICTURE}:
            return find_picture(value[PICTURE], beside)
        return {key: _restored(inner, beside) for key, inner in value.items()}
    return [_restored(inner, beside) for inner in value] if isinstance(value, list) else value
