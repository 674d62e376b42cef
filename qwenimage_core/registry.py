"""The plugins of one pipeline: found, loaded one by one in isolation, and called with their name on every error.

A plugin that cannot be loaded becomes a state with its error and harms nobody who does not name it. pluggy marks and
reads the hooks; it is never called while pictures are made, because each hook is resolved once into a plain callable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import BaseModel

from qwenimage_core import discovery, fields
from qwenimage_core.catalogue import extra_named, extra_of_field
from qwenimage_core.discovery import Candidate, Source, same_name
from qwenimage_core.errors import ConflictError, HookError, PluginError, QwenImageError
from qwenimage_core.plugin_check import check_hook_api, resolve_hooks
from qwenimage_core.request import CoreRequest

State = Literal["found", "loaded", "failed", "blocked", "incompatible"]


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """What is known of a plugin. `hooks` and `fields` are names, empty until it is loaded; `error` keeps its
    traceback (and its cause's) for whoever wants to print it; `import_ms` is how long loading took."""

    name: str
    source: Source
    target: str
    distribution: str | None = None
    version: str | None = None
    state: State = "found"
    error: QwenImageError | None = None
    hooks: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    import_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "version": self.version,
            "distribution": self.distribution,
            "source": self.source,
            "target": self.target,
            "state": self.state,
            "hooks": list(self.hooks),
            "fields": list(self.fields),
            "import_ms": self.import_ms,
            "error": self.error.as_dict() if self.error else None,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPlugin:
    """A plugin whose hooks have been checked. `hooks` maps a hook's name to the callable and the arguments it takes."""

    name: str
    version: str
    hooks: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = field(repr=False)
    model: type[BaseModel] | None = field(default=None, repr=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the request fields it adds."""
        return tuple(self.model.model_fields) if self.model else ()

    def call(self, hook: str, where: str = "", **arguments: Any) -> Any:
        """What the plugin's `hook` gives, called with those of `arguments` that it takes; None if it has no such hook.

        Its own failure comes out as HookError with plugin, version, hook and `where`, from the original exception.
        """
        if hook not in self.hooks:
            return None
        function, takes = self.hooks[hook]
        return self.run(hook, where, function, **{name: arguments[name] for name in takes})

    def run(self, hook: str, where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something that `hook` gave (a delta, a schedule, ...) under the same rules as the hook itself."""
        try:
            return function(*args, **kwargs)
        except QwenImageError as error:
            error.add_note(
                f"raised by plugin {self.name} {self.version} in {hook}" + (f", {where}" if where else "")
            )
            raise
        except Exception as error:
            raise HookError(
                f"{self.name} {self.version} failed in {hook}" + (f" at {where}." if where else "."),
                got=f"{type(error).__name__}: {str(error)[:500]}",
                mend=f"this is a fault of the plugin or its input: report it to {self.name}, or leave out its fields",
            ) from error


class PluginRegistry:
    """Every plugin that is there, in name order; installation order never matters."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._candidates = {same_name(c.name): c for c in candidates}
        self._records = {key: _first_record(c) for key, c in self._candidates.items()}
        self._loaded: dict[str, LoadedPlugin] = {}
        self._model: type[CoreRequest] | None = None

    @classmethod
    def discover(
        cls, extra: Iterable[object | str | os.PathLike[str]] = (), *, disable_all: bool = False
    ) -> Self:
        """Find installed plugins (metadata only) and add `extra`: objects, modules, classes or paths of single files.

        What is given explicitly is loaded at once and its errors are raised; see `discovery.find` for the rest.
        """
        registry = cls(discovery.find(extra, disable_all=disable_all))
        for record in registry.records:
            if record.source != "entry point":
                registry.get(record.name)
        return registry

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        return tuple(self._records[key] for key in sorted(self._records))

    @property
    def loaded(self) -> tuple[LoadedPlugin, ...]:
        return tuple(self._loaded[key] for key in sorted(self._loaded))

    def record(self, name: str) -> PluginRecord:
        """The record of a plugin by its name; PluginError if there is none."""
        record = self._records.get(same_name(name))
        if record is not None:
            return record
        near = get_close_matches(same_name(name), self._records, n=1)
        extra = extra_named(same_name(name))
        raise PluginError(
            f"There is no plugin {name!r}.",
            expected=f"one of: {', '.join(sorted(self._records)) or 'none is installed'}",
            mend=f"did you mean {near[0]}?"
            if near
            else extra.pip
            if extra
            else "see `qwenimage plugins list`",
        )

    def get(self, name: str) -> LoadedPlugin:
        """The loaded plugin of this name, loading it if need be. Raises its own error if it cannot be used."""
        record = self.load(name)
        if record.error is not None:
            raise record.error
        return self._loaded[same_name(name)]

    def load(self, name: str) -> PluginRecord:
        """Import and check one plugin. Failures become its state; nothing else changes. Done once."""
        record, key = self.record(name), same_name(name)
        if record.state != "found":
            return record
        begun = time.perf_counter()
        try:
            plugin = _load(self._candidates[key])
        except _Incompatible as error:
            record = replace(record, state="incompatible", error=error.error)
        except QwenImageError as error:
            record = replace(record, state="failed", error=error)
        else:
            record = replace(record, state="loaded", hooks=tuple(sorted(plugin.hooks)), fields=plugin.fields)
            self._loaded[key], self._model = plugin, None
        took = round(1000 * (time.perf_counter() - begun), 1)
        self._records[key] = replace(record, import_ms=took)
        return self._records[key]

    def load_all(self) -> tuple[PluginRecord, ...]:
        for record in self.records:
            self.load(record.name)
        return self.records

    def request_model(self) -> type[CoreRequest]:
        """The core's request with the fields of every plugin that can be loaded; ConflictError if two share a field."""
        self.load_all()
        if self._model is None:
            self._model = fields.compose((p.name, p.model) for p in self.loaded if p.model)
        return self._model

    def request(self, **given: Any) -> CoreRequest:
        """The validated request; RequestError with a line for each wrong field, or PluginError for an absent plugin."""
        return fields.validate(self.request_model(), given, self.explain_unknown)

    def active(self, given: Iterable[str]) -> tuple[LoadedPlugin, ...]:
        """Those loaded plugins of whose fields at least one is given, in name order."""
        names = set(given)
        return tuple(p for p in self.loaded if not names.isdisjoint(p.fields))

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the plugins that take part make of the fields left open; ConflictError where two of them disagree."""
        found: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for plugin in self.active(given):
            for name, value in (plugin.call("request_defaults", given=given) or {}).items():
                owner = owners.setdefault(name, plugin.name)
                if name not in given and found.setdefault(name, value) != value:
                    raise ConflictError(
                        f"{owner} and {plugin.name} need different values of `{name}`.",
                        got=f"{found[name]!r} and {value!r}",
                        mend=f"give `{name}` yourself, or leave out the fields of one of them",
                    )
        return found

    def explain_unknown(self, field: str) -> QwenImageError:
        """Why a field is not there: its plugin is absent (the pip line) or unusable (its error), or it is misspelt."""
        extra = extra_of_field(field)
        if extra is not None:
            record = next((r for r in self.records if extra.distribution in (r.distribution, r.name)), None)
            record = record or self._records.get(extra.name)
            return fields.unavailable(field, extra, record)
        unusable = [f"{r.name} ({r.state})" for r in self.records if r.error is not None]
        return fields.misspelt(field, self.request_model(), unusable)


class _Incompatible(Exception):
    def __init__(self, error: PluginError) -> None:
        self.error = error


def _first_record(candidate: Candidate) -> PluginRecord:
    record = PluginRecord(
        name=candidate.name,
        source=candidate.source,
        target=candidate.target,
        distribution=candidate.distribution,
        version=candidate.version,
    )
    if candidate.blocked_by is None:
        return record
    error = PluginError(
        f"Plugin {candidate.name} is installed and blocked by {candidate.blocked_by}.",
        mend="take it off the block list (or put it on the allow list) to use it",
    )
    return replace(record, state="blocked", error=error)


def _load(candidate: Candidate) -> LoadedPlugin:
    """The checked plugin of a candidate. Raises PluginError or _Incompatible and leaves nothing registered."""
    who = str(candidate)
    try:
        plugin = candidate.get()
        plugin = plugin() if isinstance(plugin, type) else plugin
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"Plugin {who} cannot be imported: {type(error).__name__}: {str(error)[:500]}",
            mend=f"see `qwenimage plugins show {candidate.name} --debug`; then repair, upgrade or uninstall it",
        ) from error
    incompatible = check_hook_api(plugin, who, candidate)
    if incompatible is not None:
        raise _Incompatible(incompatible)
    hooks = resolve_hooks(plugin, who)
    loaded = LoadedPlugin(name=candidate.name, version=candidate.version or "(no version)", hooks=hooks)
    model = loaded.call("request_fields")
    if "request_fields" in hooks:
        fields.check_model(model, who)
    return replace(loaded, model=model)
