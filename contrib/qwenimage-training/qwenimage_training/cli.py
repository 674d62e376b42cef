"""`qwenimage train`: every training option under its published name, from the fields of `TrainingArguments`."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from rich.markup import escape

from qwenimage_core.errors import RequestError
from qwenimage_training.absent import ABSENT
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.settings import merged, read_config, validated

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from qwenimage_core.registry import PluginRegistry

OWN = "What to train"
NO = "no_"
PANELS = {True: "Dataset", False: "Training"}


def _own(name: str, help: str) -> Any:
    return typer.Option(name, help=help, metavar="", show_default=False, rich_help_panel=OWN)


def train(
    *,
    recipe: Annotated[
        str | None, _own("--recipe", "published model by name (`qwenimage recipes list`)")
    ] = None,
    mode: Annotated[str | None, _own("--mode", "full or lora: the published values for either")] = None,
    config: Annotated[str | None, _own("--config", "options from a .yaml or .toml file")] = None,
    print_config: Annotated[bool, _own("--print_config", "print what would run, as YAML, and stop")] = False,
    dry_run: Annotated[
        bool, _own("--dry_run", "say steps, memory and time, and stop; writes nothing")
    ] = False,
    no_measure: Annotated[bool, _own("--no_measure", "with --dry_run: run no step, estimate")] = False,
    as_json: Annotated[bool, _own("--json", "with --dry_run: one JSON object on stdout")] = False,
    **given: Any,
) -> None:
    """Train a model, or a LoRA for it, on pictures with prompts.

    Values come from the mode, the recipe, the config file and the command line, the later over the earlier. What one of
    them has switched on, --no_NAME switches off.
    """
    from qwenimage_core.recipes import find_recipe
    from qwenimage_core.registry import PluginRegistry

    written = read_config(config) if config else {}
    plugins = [*(given.get("plugin") or written.get("plugin") or [])]
    registry = PluginRegistry.discover(plugins)
    found = find_recipe(recipe, registry) if recipe else None
    arguments = validated(merged(mode, found, written, given))
    if (no_measure or as_json) and not dry_run:
        raise RequestError(
            "--no_measure and --json do nothing without --dry_run.", mend="add it, or leave them out"
        )
    if print_config:
        print(as_yaml(arguments), end="")
        return
    if dry_run:
        _forecast(arguments, registry, measure=not no_measure, as_json=as_json)
        return
    from qwenimage_training.run import make_cache, run

    if arguments.stage == "data_process":
        from accelerate import PartialState

        folder = make_cache(arguments, registry)
        PartialState().print(folder)  # once, however many processes made it
    else:
        run(arguments, registry)


def _forecast(
    arguments: TrainingArguments, registry: PluginRegistry, *, measure: bool, as_json: bool
) -> None:
    from qwenimage_training.dry_run import forecast, show
    from qwenimage_training.run import make_trainer

    found = forecast(make_trainer(arguments, registry), measure=measure)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        show(found)


def as_yaml(arguments: TrainingArguments) -> str:
    """A config file that says the same."""
    import yaml  # type: ignore[import-untyped]

    values = json.loads(arguments.model_dump_json(exclude_unset=True))
    rest = {
        k: v for k, v in json.loads(arguments.model_dump_json()).items() if k not in values and v is not None
    }
    rest = {k: v for k, v in rest.items() if k not in _idle(arguments)}
    return yaml.safe_dump({**values, **rest}, sort_keys=False, allow_unicode=True)


def _idle(arguments: TrainingArguments) -> set[str]:
    """Defaults that would be refused if they were written down, because they do nothing here."""
    from qwenimage_training.arguments import LORA_ONLY

    idle = set() if arguments.lora_base_model else set(LORA_ONLY)
    idle |= set() if arguments.buckets else {"bucket_step", "bucket_max_aspect", "bucket_enlarge"}
    return idle | ({"max_pixels"} if arguments.fixed_size else set())


def add_train(app: typer.Typer) -> None:
    app.command("train")(with_options(train))


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with its `**given` spelt out; it receives the options that were given, and no others."""
    own = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    fields = TrainingArguments.model_fields
    switches = [name for name, field in fields.items() if field.annotation is bool]
    options = [_parameter(name, field) for name, field in fields.items()]
    options += [_taking_back(name) for name in switches]
    options += [_absent(name) for name in ABSENT]
    known = {*fields, *ABSENT}

    def run(**values: Any) -> None:
        given = {n: v for n, v in values.items() if n in known and v not in (None, [], False)}
        given |= {name: False for name in switches if values.pop(f"{NO}{name}")}
        command(**{n: v for n, v in values.items() if n not in known}, **given)

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Text for typer, values for pydantic: so that the command line and a config file give the same errors."""
    note = "" if field.default in (None, "", False) or field.default == [] else f" (default {field.default})"
    note = f" (on; --{NO}{name} switches it off)" if field.default is True else note
    option = typer.Option(
        f"--{name}",
        help=escape((field.description or "") + note),
        metavar="",
        show_default=False,
        rich_help_panel=PANELS[name in DataArguments.model_fields],
    )
    kind: Any = bool if field.annotation is bool else list[str] if _is_list(field.annotation) else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _taking_back(name: str) -> inspect.Parameter:
    """`--no_NAME`, for a switch that a mode, a recipe or a config file has turned on. Not shown: it would cut off the
    names of the others."""
    option = typer.Option(f"--{NO}{name}", hidden=True)
    return inspect.Parameter(
        f"{NO}{name}", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def _absent(name: str) -> inspect.Parameter:
    """An option that is understood only to say what does its work."""
    kind: Any = bool if name.startswith("enable_") else str
    annotation = Annotated[kind | None, typer.Option(f"--{name}", hidden=True)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_list(part) for part in get_args(annotation))
    return get_origin(annotation) is list
