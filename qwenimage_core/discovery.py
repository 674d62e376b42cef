"""Finding plugins without importing them: the metadata of installed distributions, given objects and given files.

`find_installed` reads entry points only. What it finds is a `Candidate`: a name, where it comes from, and how to get
the plugin object when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from qwenimage_core.catalogue import extra_named
from qwenimage_core.errors import ConflictError, PluginError
from qwenimage_core.hooks import ENTRY_POINT_GROUP

Source = Literal["entry point", "object", "file"]

ALLOW = "QWENIMAGE_PLUGINS"
DISABLE = "QWENIMAGE_DISABLE_PLUGINS"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plugin that is there and not yet imported. `target` says what is imported: "module:attribute" or a path."""

    name: str
    source: Source
    target: str
    get: Callable[[], Any]
    distribution: str | None = None
    version: str | None = None
    blocked_by: str | None = None

    def __str__(self) -> str:
        if self.distribution:
            return f"{self.name} of {self.distribution} {self.version} ({self.target})"
        return f"{self.name}, given as {'a file' if self.source == 'file' else 'an object'} ({self.target})"


def same_name(name: str) -> str:
    """The form in which plugin and distribution names are compared: lower case, single dashes."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


@cache
def _scan() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def refresh() -> None:
    """Forget the scan of installed distributions, after a pip install in a running process."""
    _scan.cache_clear()
    importlib.invalidate_caches()


def find(extra: Iterable[object] = (), *, disable_all: bool = False) -> tuple[Candidate, ...]:
    """All plugins by name: installed ones, then `extra` (objects, modules, classes, or paths of single files).

    The environment narrows what is installed: QWENIMAGE_PLUGINS="edit,eligen" allows only these,
    QWENIMAGE_DISABLE_PLUGINS="x" blocks by plugin or distribution name; `disable_all` blocks everything installed.
    Given objects and files are not touched by the allow list. Raises ConflictError for two plugins of one name and
    PluginError for names in the environment that match nothing.
    """
    installed = find_installed(disable_all=disable_all)
    given = _given(extra)
    disabled = _names_from(DISABLE)
    for candidate in given:
        if same_name(candidate.name) in disabled:
            raise PluginError(
                f"Plugin {candidate.name} is given explicitly and blocked by {DISABLE}.",
                got=f"{DISABLE}={os.environ[DISABLE]}",
                mend=f"leave out one of the two; to block an installed {candidate.name}, name its distribution",
            )
    _refuse_duplicates([c for c in installed if c.blocked_by is None])
    chosen = {same_name(c.name): c for c in sorted(installed, key=lambda c: c.blocked_by is None)}
    for candidate in given:
        key = same_name(candidate.name)
        rival = chosen.get(key)
        if rival is None or rival.blocked_by is not None:
            chosen[key] = candidate
        elif not _is_same(rival, candidate):
            _refuse_duplicates([rival, candidate])
    return tuple(chosen[key] for key in sorted(chosen))


def find_installed(*, disable_all: bool = False) -> list[Candidate]:
    """What installed distributions offer, from their metadata alone, sorted by name; blocked ones are marked."""
    allowed, disabled = _names_from(ALLOW), _names_from(DISABLE)
    found = []
    for point in _scan():
        distribution = point.dist.name if point.dist else None
        names = {same_name(point.name), same_name(distribution or point.name)}
        blocked = "--no-plugins" if disable_all else None
        if blocked is None and names & disabled:
            blocked = f"{DISABLE}={os.environ[DISABLE]}"
        if blocked is None and allowed and not names & allowed:
            blocked = f"{ALLOW}={os.environ[ALLOW]}"
        found.append(
            Candidate(
                name=point.name,
                source="entry point",
                target=point.value,
                get=point.load,
                distribution=distribution,
                version=point.dist.version if point.dist else None,
                blocked_by=blocked,
            )
        )
    present = {same_name(n) for c in found for n in (c.name, c.distribution or c.name)}
    if not disable_all:
        _refuse_strangers(ALLOW, allowed - present, present)
        _refuse_strangers(DISABLE, disabled - present, present)
    return sorted(found, key=lambda c: (same_name(c.name), same_name(c.distribution or "")))


def _names_from(variable: str) -> set[str]:
    return {same_name(part) for part in os.environ.get(variable, "").split(",") if part.strip()}


def _refuse_strangers(variable: str, strangers: set[str], present: set[str]) -> None:
    """A name in the environment that matches nothing is a misspelling, or a plugin that is not installed."""
    for stranger in sorted(strangers):
        near = get_close_matches(stranger, present, n=1)
        extra = extra_named(stranger)
        mend = f"take {stranger} out of {variable}"
        if near:
            mend = f"did you mean {near[0]}?"
        elif extra and variable == ALLOW:
            mend = extra.pip
        raise PluginError(
            f"{variable} names a plugin that is not installed.",
            got=stranger,
            expected=f"some of: {', '.join(sorted(present)) or 'none is installed'}",
            mend=mend,
        )


def _refuse_duplicates(candidates: list[Candidate]) -> None:
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        first = seen.setdefault(same_name(candidate.name), candidate)
        if first is candidate:
            continue
        distributions = [c.distribution for c in (first, candidate) if c.distribution]
        mend = "uninstall one of them, or block one by its distribution: " + " or ".join(
            f"{DISABLE}={d}" for d in distributions
        )
        if candidate.source != "entry point":
            mend = f"give yours another NAME, or block the installed one: {DISABLE}={first.distribution}"
        if not distributions:
            mend = "give one of them another NAME"
        raise ConflictError(
            f"Two plugins are called {candidate.name!r}.", got=f"{first}; {candidate}", mend=mend
        )


def _is_same(installed: Candidate, given: Candidate) -> bool:
    """Whether a given object is the installed plugin itself; found out without importing anything."""
    if given.source == "file" or installed.source != "entry point":
        return installed.get is given.get
    module, _, attribute = installed.target.partition(":")
    value: Any = sys.modules.get(module.strip())
    for part in filter(None, attribute.strip().split(".")):
        value = getattr(value, part, None)
    return value is not None and value is given.get()


def _given(extra: Iterable[object]) -> list[Candidate]:
    found: list[Candidate] = []
    for item in extra:
        candidate = _file(Path(item)) if isinstance(item, str | os.PathLike) else _object(item)
        rivals = [c for c in found if same_name(c.name) == same_name(candidate.name)]
        if rivals and rivals[0].source == "object" == candidate.source and rivals[0].get() is candidate.get():
            continue
        _refuse_duplicates([*rivals, candidate])
        found.append(candidate)
    return found


def _object(plugin: object) -> Candidate:
    """A module names itself by `NAME` or its module name, any other object by `NAME` or its class's name."""
    if inspect.ismodule(plugin):
        default = target = plugin.__name__
    else:
        kind = plugin if inspect.isclass(plugin) else type(plugin)
        default, target = kind.__name__, f"{kind.__module__}:{kind.__qualname__}"
    name = getattr(plugin, "NAME", default.rpartition(".")[2])
    version = getattr(plugin, "__version__", None)
    return Candidate(
        name=str(name),
        source="object",
        target=target,
        get=lambda: plugin,
        version=None if version is None else str(version),
    )


def _file(path: Path) -> Candidate:
    """A single file is named by the user, so it is imported at once and its errors are raised at once."""
    if not path.is_file() or path.suffix != ".py":
        raise PluginError(
            "A plugin given by path is a single Python file.",
            got=f"{path}" + ("" if path.exists() else ", which is not there"),
            mend="give the path of a .py file, or install a packaged plugin with pip",
        )
    module = _import_file(path.resolve())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[
        :12
    ]  # stands for a version, so that a change shows
    return Candidate(
        name=str(getattr(module, "NAME", path.stem)),
        source="file",
        target=str(path),
        get=lambda: module,
        version=str(getattr(module, "__version__", f"sha256:{digest}")),
    )


def _import_file(path: Path) -> ModuleType:
    """Import under a private name that no other module can have; it stays importable for pydantic and pickle."""
    name = f"_qwenimage_plugin_{re.sub(r'[^0-9A-Za-z]', '_', str(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(
            f"Plugin file {path} cannot be imported: {type(error).__name__}: {error}",
            mend="mend the file; QWENIMAGE_DEBUG=1 shows the traceback",
        ) from error
    return module
