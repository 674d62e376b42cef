"""Request fields as command line options: every field of the core and of the plugins becomes one by itself.

Options carry text; the request's own model turns text into values and says what is wrong with it, so the command line
and Python give the same errors. Only what text cannot say by itself is decided here: switches, repetition, and models
inside fields (JSON or key=value).
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from qwenimage_core.errors import PluginError, RequestError
from qwenimage_core.images import open_picture

CORE_PANEL = "Request"
METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false"}


@dataclass(frozen=True)
class Shape:
    """What a field accepts, as far as options care: `kinds` are the plain types, literals and models in it."""

    kinds: tuple[Any, ...]
    many: bool = False
    single: bool = True
    picture: bool = False

    @property
    def boolean(self) -> bool:
        """Whether true or false is among the values."""
        literals = [v for k in self.kinds if get_origin(k) is Literal for v in get_args(k)]
        return bool in self.kinds or any(isinstance(v, bool) for v in literals)

    @property
    def models(self) -> bool:
        return any(inspect.isclass(k) and issubclass(k, BaseModel | Mapping) for k in self.kinds)

    @property
    def metavar(self) -> str:
        words = ["PICTURE"] if self.picture else []
        for kind in self.kinds:
            if get_origin(kind) is Literal:
                words.append(
                    "|".join(str(v).lower() if isinstance(v, bool) else str(v) for v in get_args(kind))
                )
            elif kind in METAVARS:
                words.append(METAVARS[kind])
        words += ["KEY=VALUE,...|JSON"] if self.models else []
        return "|".join(dict.fromkeys(words)) or "TEXT"


def shape_of(annotation: Any, metadata: Iterable[Any] = ()) -> Shape:
    """Walk through Annotated, unions and one level of list. The metadata of a field is that of its outermost type."""
    if any(getattr(m, "func", None) is open_picture for m in metadata):
        return Shape((), picture=True)
    origin = get_origin(annotation)
    if origin is Annotated:
        return shape_of(annotation.__origin__, annotation.__metadata__)
    if origin in (Union, types.UnionType):
        parts = [shape_of(a) for a in get_args(annotation) if a is not type(None)]
        return Shape(
            tuple(dict.fromkeys(k for p in parts for k in p.kinds)),
            many=any(p.many for p in parts),
            single=any(not p.many for p in parts),
            picture=any(p.picture for p in parts),
        )
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        inner = shape_of(get_args(annotation)[0])
        return Shape(inner.kinds, many=True, single=False, picture=inner.picture)
    return Shape((origin if inspect.isclass(origin) else annotation,))


@dataclass(frozen=True)
class FieldOption:
    """One request field as an option, with the panel of --help where it stands."""

    field: str
    shape: Shape
    help: str
    default: Any
    panel: str

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def switch(self) -> bool:
        """Whether the bare option says it all: what is off by default can only be switched on."""
        return self.shape.kinds == (bool,) and not self.shape.many and self.default is False

    def parameter(self) -> inspect.Parameter:
        """For typer. Nothing given is None, so that the request knows what was given."""
        option = typer.Option(
            self.flag,
            help=escape(self.help_text()),
            metavar="",  # stands in the help text instead: a column of its own would cut off the names
            show_default=False,
            rich_help_panel=self.panel,
        )
        kind: Any = bool if self.switch else list[str] if self.shape.many else str
        return inspect.Parameter(
            self.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, option],
        )

    def help_text(self) -> str:
        """The description, then what to write, whether it may be repeated, and the default."""
        notes = [] if self.switch else [self.shape.metavar]
        notes += ["may be repeated"] if self.shape.many else []
        if self.default not in (None, "", False):
            notes.append(f"default {'true' if self.default is True else self.default}")
        return f"{self.help} ({', '.join(notes)})" if notes else self.help

    def value(self, given: Any) -> Any:
        """What the request is given for the text on the command line."""
        if not isinstance(given, list):
            return given if isinstance(given, bool) else self._one(given)
        if len(given) == 1 and given[0].lstrip().startswith("[") and str not in self.shape.kinds:
            return self._json(given[0])
        values = [self._one(text) for text in given]
        return values[0] if len(values) == 1 and self.shape.single else values

    def _one(self, text: str) -> Any:
        if self.shape.boolean and text in ("true", "false"):
            return text == "true"
        if not self.shape.models:
            return text
        if text.lstrip().startswith("{"):
            return self._json(text)
        if "=" in text and not Path(text).exists():
            return dict(part.split("=", 1) for part in self._parts(text))
        return text

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.flag} is no sound JSON: {error}", got=text[:200]) from error

    def _parts(self, text: str) -> list[str]:
        parts = [part.strip() for part in text.split(",")]
        if not all("=" in part for part in parts):
            raise RequestError(
                f"{self.flag} is neither JSON nor key=value pairs.",
                got=text[:200],
                expected="key=value,key=value",
                mend="use JSON where a value holds a comma",
            )
        return parts


def field_options(model: type[BaseModel], owners: Mapping[str, str]) -> list[FieldOption]:
    """The options of a request model; `owners` maps a plugin's fields to the panel they are shown in. Core first."""
    fields = {name: field for name, field in model.model_fields.items() if not field.exclude}
    options = [_option(name, field, owners.get(name, CORE_PANEL)) for name, field in fields.items()]
    return sorted(options, key=lambda o: "" if o.panel == CORE_PANEL else o.panel)


def _option(name: str, field: FieldInfo, panel: str) -> FieldOption:
    shape = shape_of(field.annotation, field.metadata)
    return FieldOption(
        name, shape, field.description or "", field.get_default(call_default_factory=False), panel
    )


def with_fields(command: Callable[..., Any], options: Sequence[FieldOption]) -> Callable[..., Any]:
    """`command` with its `**fields` spelt out as options; it receives the values of those that were given."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if taken := sorted({o.field for o in options} & {flag for p in own for flag in _flags(p)}):
        raise PluginError(
            "A plugin's request field has the name of an option of the command line.",
            got=", ".join(f"{o.field} ({o.panel})" for o in options if o.field in taken),
            mend="the plugin must rename it",
        )
    by_name = {o.field: o for o in options}

    def run(**values: Any) -> Any:
        fields = {n: by_name[n].value(v) for n, v in values.items() if n in by_name and v not in (None, [])}
        return command(**{n: v for n, v in values.items() if n not in by_name}, **fields)

    parameters = [*own, *(o.parameter() for o in options)]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _flags(parameter: inspect.Parameter) -> list[str]:
    """Field names that an option of the command line's own would hide."""
    declared = [d for m in getattr(parameter.annotation, "__metadata__", ()) for d in (m.param_decls or ())]
    return [parameter.name, *(d.removeprefix("--").replace("-", "_") for d in declared)]
