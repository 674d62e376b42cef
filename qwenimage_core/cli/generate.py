"""`generate` and `explain`: the request's fields as options, and around them the model and where pictures go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from qwenimage_core.cli.drawing import draw
from qwenimage_core.cli.options import FieldOption, field_options, with_fields
from qwenimage_core.cli.output import Targets
from qwenimage_core.cli.session import (
    Compile,
    Device,
    Dtype,
    Json,
    Lora,
    LowMemory,
    MemoryLimit,
    Model,
    NoPlugins,
    Output,
    Overwrite,
    ParallelWay,
    PluginFiles,
    RecipeName,
    model_of,
    open_session,
    parse_loras,
    progress,
    show_peak,
    show_plan,
)
from qwenimage_core.errors import RequestError
from qwenimage_core.parallel.launch import Launch, checked, leads
from qwenimage_core.registry import PluginRegistry

Prompt = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="what to draw, in quotes", show_default=False)
]


def add_commands(app: typer.Typer, registry: PluginRegistry | None) -> None:
    """Add both commands; with a registry they have all their options, without one only their names and summaries."""
    options = _options(registry) if registry is not None else []
    for command in (_generate(registry), _explain(registry)):
        app.command(context_settings={"token_normalize_func": dashed})(with_fields(command, options))


def dashed(name: str) -> str:
    """--cfg_scale is --cfg-scale: Python's names work as they are."""
    return name.replace("_", "-")


def _options(registry: PluginRegistry) -> list[FieldOption]:
    model = registry.request_model()
    owners = {f: f"Plugin {p.name} {p.version}" for p in registry.loaded for f in p.fields}
    return field_options(model, owners)


def _generate(registry: PluginRegistry | None) -> Callable[..., None]:
    def generate(  # noqa: PLR0913  one argument an option
        text: Prompt = None,
        *,
        model: Model = None,
        recipe: RecipeName = None,
        low_memory: LowMemory = False,
        memory: MemoryLimit = None,
        parallel: ParallelWay = None,
        compiled: Compile = False,
        output: Output = None,
        overwrite: Overwrite = False,
        lora: Lora = None,
        dtype: Dtype = None,
        device: Device = None,
        plugin: PluginFiles = None,
        no_plugins: NoPlugins = False,
        as_json: Json = False,
        **fields: Any,
    ) -> None:
        """Draw pictures from a prompt and write them, each with the record of how it was made."""
        assert registry is not None
        begun = time.perf_counter()
        parallel = checked(parallel or ("data" if Launch.found() else None))
        request = _request(text, fields, registry)
        source = model_of(model, recipe)
        session = open_session(
            source,
            registry,
            dtype=dtype,
            device=device,
            loras=parse_loras(lora),
            low_memory=low_memory,
            memory=memory,
            parallel=parallel,
            compiled=compiled,
        )
        plans = session.pipe.plans(**request, progress_bar_cmd=progress)
        kind = plans[0].request.output_type
        seeds = [
            s for plan in plans for s in plan.seeds for _ in range(plan.target.frames if kind == "pil" else 1)
        ]
        targets = Targets.of(output, seeds, kind=kind, overwrite=overwrite)
        if not as_json:
            show_plan(session, plans)
        with session.pipe.keeper.watch() as peak:
            written = draw(
                session, plans, targets, lambda each: None if as_json else print(each["path"], flush=True)
            )
        if session.pipe.group is not None:
            session.pipe.group.leave()
        if not leads():
            return
        if as_json:
            seconds = round(time.perf_counter() - begun, 3)
            print(json.dumps({"pictures": written, "seconds": seconds, "peak_bytes": peak.bytes}))
        else:
            show_peak(peak.bytes)

    return generate


def _explain(registry: PluginRegistry | None) -> Callable[..., None]:
    def explain(  # noqa: PLR0913  one argument an option
        text: Prompt = None,
        *,
        model: Model = None,
        recipe: RecipeName = None,
        low_memory: LowMemory = False,
        memory: MemoryLimit = None,
        lora: Lora = None,
        dtype: Dtype = None,
        device: Device = None,
        plugin: PluginFiles = None,
        no_plugins: NoPlugins = False,
        as_json: Json = False,
        **fields: Any,
    ) -> None:
        """Say what `generate` with the same options would do: layouts, who contributes what, schedule, memory."""
        assert registry is not None
        request = _request(text, fields, registry)
        source = model_of(model, recipe)
        session = open_session(
            source,
            registry,
            dtype=dtype,
            device=device,
            loras=parse_loras(lora),
            low_memory=low_memory,
            memory=memory,
        )
        explanation = session.pipe.explain(**request)
        print(json.dumps(explanation.as_dict(), default=str) if as_json else explanation)

    return explain


def _request(text: str | None, fields: dict[str, Any], registry: PluginRegistry) -> dict[str, Any]:
    """The fields that were given, checked before anything heavy is imported."""
    if text is not None and "prompt" in fields:
        raise RequestError(
            "The prompt is given twice, as an argument and with --prompt.", mend="leave one out"
        )
    if text is None and "prompt" not in fields:
        raise RequestError(
            "There is no prompt.", mend='qwenimage generate "a red circle on a blue background"'
        )
    given = fields if text is None else {"prompt": text, **fields}
    registry.request(**{**registry.defaults(given), **given})
    return given
