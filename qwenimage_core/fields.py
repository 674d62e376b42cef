"""The request model put together from the core's fields and the plugins', and its errors in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from types import new_class
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from qwenimage_core.catalogue import PEER_NAMES, Extra, extra_of_field, known_fields
from qwenimage_core.errors import ConflictError, PluginError, QwenImageError, RequestError
from qwenimage_core.request import CoreRequest, FieldsModel

if TYPE_CHECKING:
    from qwenimage_core.registry import PluginRecord

MAX_LINES = 20
MAX_VALUE = 80


def check_model(model: object, who: str) -> None:
    """PluginError unless a plugin's `request_fields` model can be added to the core's without changing it."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or issubclass(model, CoreRequest):
        raise PluginError(
            f"Plugin {who}: request_fields gives no pydantic model of its own.",
            got=repr(model)[:MAX_VALUE],
            expected="a subclass of qwenimage_core.request.FieldsModel with only the plugin's fields",
        )
    core = _names(CoreRequest)
    if taken := sorted(core & _names(model)):
        raise PluginError(
            f"Plugin {who} uses names that the core's request has.",
            got=", ".join(taken),
            mend="give its fields, validators and methods names that begin with the plugin's",
        )
    if required := [name for name, field in model.model_fields.items() if field.is_required()]:
        raise PluginError(
            f"Plugin {who} has request fields without a default; nobody could run anything without them.",
            got=", ".join(required),
            mend="give each a default that means: this plugin takes no part",
        )


def _names(model: type[BaseModel]) -> set[str]:
    """Fields, validators and methods of a model: what another base of the same class would replace in silence."""
    bases = [base for base in model.__mro__ if base not in (*BaseModel.__mro__, FieldsModel)]
    own = {name for base in bases for name in vars(base) if not name.startswith(("__", "_abc", "model_"))}
    return own | set(model.model_fields)


def compose(models: Iterable[tuple[str, type[BaseModel]]]) -> type[CoreRequest]:
    """CoreRequest with the plugins' models as further bases; ConflictError if two of them share a name."""
    bases: list[type[BaseModel]] = []
    owners: dict[str, str] = {}
    for plugin, model in models:
        for name in sorted(_names(model)):
            other = owners.setdefault(name, plugin)
            if other != plugin:
                kind = "request field" if name in model.model_fields else "name in their request models"
                raise ConflictError(
                    f"Plugins {other} and {plugin} share the {kind} {name!r}.",
                    expected="each name from one plugin",
                    mend=f"leave one out: QWENIMAGE_DISABLE_PLUGINS={plugin}",
                )
        bases.append(model)
    settings = {
        "model_config": FieldsModel.model_config,
        "__module__": __name__,
        "__doc__": CoreRequest.__doc__,
    }
    return new_class("Request", (*bases, CoreRequest), exec_body=lambda names: names.update(settings))


def validate(
    model: type[CoreRequest], given: Mapping[str, Any], unknown: Callable[[str], QwenImageError]
) -> CoreRequest:
    """The request of the given fields. The first unknown field raises what `unknown` says of it; all other faults
    come together in one RequestError, a line for each field."""
    for name in given:
        if name not in model.model_fields:
            raise unknown(name)
    try:
        return model(**given)
    except ValidationError as error:
        raise request_error(error) from error


def request_error(error: ValidationError) -> RequestError:
    """One RequestError with a line for each wrong field; a RequestError raised by a validator alone comes as it is."""
    faults = error.errors(include_url=False)
    own = faults[0].get("ctx", {}).get("error") if len(faults) == 1 else None
    if isinstance(own, RequestError):
        return own
    lines: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for fault in faults:
        place = fault["loc"]
        name = str(place[0]) if place else ""
        values[name] = fault["input"]
        text = str(fault.get("ctx", {}).get("error") or fault["msg"])
        inner = ".".join(str(p) for p in place[1:] if not str(p).endswith(("]", ")")))
        lines.setdefault(name, []).append(f"{inner}: {text}" if inner else text)
    said = [_line(name, texts, values[name]) for name, texts in lines.items()]
    if len(said) == 1:
        return RequestError(said[0])
    shown = said[:MAX_LINES] + ([f"... and {len(said) - MAX_LINES} more"] if len(said) > MAX_LINES else [])
    return RequestError("\n  ".join([f"The request has {len(said)} faults.", *shown]))


def _line(name: str, texts: list[str], value: Any) -> str:
    said = " or ".join(dict.fromkeys(texts))
    if not name:
        return said
    shown = repr(value)
    shown = shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 3] + "..."
    return f"{name}: {said} (got {shown})"


def unavailable(field: str, extra: Extra, record: PluginRecord | None) -> QwenImageError:
    """The error for a field of a first-party plugin that is not installed, or installed and not usable."""
    if record is None:
        return RequestError(f"`{field}` needs {extra.distribution}: {extra.pip}")
    if record.error is None:
        return RequestError(
            f"`{field}` is not a field of the installed {extra.distribution} {record.version}.",
            expected=f"one of: {', '.join(record.fields)}",
            mend=f'pip install --upgrade "qwenimage-core[{extra.name}]"',
        )
    error = PluginError(
        f"`{field}` needs plugin {record.name}, which is {record.state}. {record.error.what}",
        got=record.error.got,
        expected=record.error.expected,
        mend=record.error.mend,
    )
    error.__cause__ = record.error
    return error


def misspelt(field: str, model: type[BaseModel], unusable: Iterable[str]) -> RequestError:
    """The error for a field that no known plugin has: the nearest field there is, or that a first-party extra has."""
    there = list(model.model_fields)
    absent = [f for f in known_fields() if f not in there]
    near = PEER_NAMES.get(field) or next(iter(get_close_matches(field, there + absent, n=1)), None)
    mend = "see the options in `qwenimage generate --help`"
    if near in there:
        mend = f"did you mean `{near}`?"
    elif near is not None and (extra := extra_of_field(near)):
        mend = f"did you mean `{near}`? It needs {extra.distribution}: {extra.pip}"
    left_out = ", ".join(unusable)
    return RequestError(
        f"There is no request field `{field}`.",
        got=f"plugins that could not be asked: {left_out}" if left_out else None,
        mend=mend,
    )
