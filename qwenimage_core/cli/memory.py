"""`memory`: what a model will need, stage by stage, as a table and a picture, before anything is there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenimage_core.cli.session import (
    DTYPES,
    Device,
    Dtype,
    Json,
    MemoryLimit,
    Model,
    Overwrite,
    PluginFiles,
    RecipeName,
    model_of,
)
from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.recipes import find_recipe
from qwenimage_core.registry import PluginRegistry

if TYPE_CHECKING:
    from qwenimage_core.loading.config import ModelConfig
    from qwenimage_core.loading.recognise import ComponentSpec
    from qwenimage_core.memory.sizes import Sizes
    from qwenimage_core.models.backbone import BackboneDescription

RECIPE = "recipe:"
PUBLISHED = "published sizes"

Size = Annotated[str, typer.Option("--size", metavar="WxH", help="pixels, multiples of 16")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="denoising steps")]
Pictures = Annotated[int, typer.Option("--pictures", min=1, help="drawn at once, for one prompt")]
References = Annotated[int, typer.Option("--references", min=0, help="pictures given, of the drawn size")]
Frames = Annotated[int, typer.Option("--frames", min=1, help="of a layered picture: its layers and one")]
Tile = Annotated[int | None, typer.Option("--tile-size", min=8, help="decode in tiles, latent pixels")]
Bars = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="draw the bars into a PNG")]


def memory(  # noqa: PLR0913  one argument an option
    *,
    model: Model = None,
    recipe: RecipeName = None,
    size: Size = "1328x1328",
    limit: MemoryLimit = None,
    device: Device = None,
    dtype: Dtype = None,
    steps: Steps = 40,
    pictures: Pictures = 1,
    references: References = 0,
    frames: Frames = 1,
    tile: Tile = None,
    output: Bars = None,
    overwrite: Overwrite = False,
    plugin: PluginFiles = None,
    as_json: Json = False,
) -> None:
    """Say how much memory a picture will need, without loading or downloading anything.

    Sizes are those of the files on this machine, else as published. Devices may be named that are not here.
    """
    width, height = _sides(size)
    if output is not None:
        _check_output(output, overwrite)
    import torch

    from qwenimage_core.memory.outlook import Job, outlook
    from qwenimage_core.memory.report import facts, residency, table

    device = device or "cpu"
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise RequestError("--dtype is none that models are run in.", got=dtype, expected=", ".join(DTYPES))
    source = model_of(model, recipe)
    found, notes = _parts(source, PluginRegistry.discover(plugin or ()), getattr(torch, dtype))
    sizes = [part for part, _ in found.values()]
    job = Job(
        height=height,
        width=width,
        steps=steps,
        pictures=pictures,
        references=references,
        frames=frames,
        tile=tile,
    )
    machine = _machine(limit, device)
    stages, placements = outlook(sizes, job.work(_backbone(found), found["transformer"][0]), machine, device)
    told: dict[str, Any] = {
        "model": source,
        "width": width,
        "height": height,
        "device": device,
        "dtype": dtype,
        "notes": notes,
    }
    told |= {"memory": facts(stages, machine)}
    told |= {"placements": {name: residency(place) or "stays" for name, place in placements.items()}}
    title = f"{source}, {width} x {height}, {dtype} on {device}" + (f", memory {limit}" if limit else "")
    if output is not None:
        from qwenimage_core.memory.bars import bars

        bars(told["memory"], title).save(output)
    if as_json:
        print(json.dumps(told))
        return
    print("\n".join([title, *(f"  {note}" for note in notes), *table(told["memory"])]))
    print("\n".join(f"  {name}: {words}" for name, words in told["placements"].items()))


def _backbone(found: Mapping[str, tuple[Sizes, Any]]) -> BackboneDescription:
    from qwenimage_core.models.backbone import BackboneDescription

    modules = {kind: module for kind, (_, module) in found.items()}
    return BackboneDescription.of_qwen_image(
        modules["transformer"].config, modules["vae"].config, modules["text_encoder"].width
    )


def _sides(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip())
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(side and side % 16 == 0 for side in sides):
        raise RequestError(
            "--size is WIDTHxHEIGHT in pixels.", got=text, expected="multiples of 16, as 1328x1328"
        )
    return sides


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix.lower() != ".png":
        raise RequestError("The bars are written as PNG.", got=output.name, expected="NAME.png")
    if output.exists() and not overwrite:
        raise RequestError(f"{output} exists.", mend="choose another name, or say --overwrite")


def _machine(limit: str | None, device: str) -> Any:
    """A named limit as of an empty device, and all of this machine's host memory beside it; `auto` as of now."""
    if limit is None:
        return None
    import torch

    from qwenimage_core.memory.measure import available
    from qwenimage_core.memory.presets import SHARE, Machine, parse

    wanted = parse(limit)
    if wanted is None:
        return Machine.of(limit, torch.device(device))
    host = 0 if device == "cpu" else available(torch.device("cpu")) or 0
    return Machine(device, wanted, 0, int(SHARE * host))


def _parts(
    source: str, registry: PluginRegistry, dtype: Any
) -> tuple[dict[str, tuple[Sizes, Any]], list[str]]:
    """Component by component its sizes and its module without values; and what has to be said about them."""
    from qwenimage_core.assemble import component_specs
    from qwenimage_core.loading.recognise import CORE_COMPONENTS
    from qwenimage_core.memory.outlook import published

    found: dict[str, tuple[Sizes, Any]] = {}
    notes = []
    specs = component_specs(registry)
    for config in _configs(source, registry):
        try:
            here = _from_files(config, specs, dtype, found)
        except LoadError:
            if config.path is not None:
                raise
            kind = _kind_of(config)
            if kind is None:
                notes.append(f"{config} is not here and not counted")
                continue
            notes.append(f"{kind}: {PUBLISHED}, no files of {config} here")
            here = {kind: published(CORE_COMPONENTS, dtype)[kind]}
        found |= here
    return found, notes


def _configs(source: str, registry: PluginRegistry) -> Sequence[ModelConfig]:
    from qwenimage_core.loading.bundle import WEIGHTS, find_bundle
    from qwenimage_core.loading.config import ModelConfig

    if source.startswith(RECIPE):
        models = find_recipe(source.removeprefix(RECIPE), registry).models
        return [ModelConfig(**model, skip_download=True) for model in models]
    if "/" in source and not Path(source).expanduser().exists():
        return [
            ModelConfig(model_id=source, origin_file_pattern=pattern, skip_download=True)
            for pattern in WEIGHTS.values()
        ]
    return find_bundle(source).models


def _from_files(
    config: ModelConfig, specs: Sequence[ComponentSpec], dtype: Any, known: dict[str, Any]
) -> dict[str, tuple[Sizes, Any]]:
    from qwenimage_core.loading.components import find_components
    from qwenimage_core.memory.sizes import Sizes

    found: dict[str, tuple[Sizes, Any]] = {}
    for kind, several in find_components([config], dtype=dtype, specs=specs, needed=()).items():
        for component in several:
            name = kind if kind not in {**known, **found} else f"{kind}/{len({**known, **found})}"
            found[name] = (Sizes.of(name, component), component.skeleton)
    return found


def _kind_of(config: ModelConfig) -> str | None:
    """Which of the three published components a file pattern stands for."""
    (pattern, *_) = config.origin_file_pattern or ("",)
    if pattern.startswith(("text_encoder/", "vae/")):
        return pattern.partition("/")[0]
    return "transformer" if "diffusion_pytorch_model" in pattern else None
