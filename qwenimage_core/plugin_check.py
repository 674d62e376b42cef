"""What a plugin must be before it is used: written for this hook API, with hooks that exist and arguments they have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import FunctionType, MappingProxyType
from typing import Any

import pluggy

from qwenimage_core import hooks as specifications
from qwenimage_core.discovery import Candidate, same_name
from qwenimage_core.errors import PluginError
from qwenimage_core.hooks import HOOK_API, PROJECT

Hooks = Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]]


def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Every hook's name with the arguments it is called with."""
    manager = _manager()
    specs = {
        name: getattr(manager.hook, name).spec for name in vars(manager.hook) if not name.startswith("_")
    }
    return {name: tuple(spec.argnames) for name, spec in sorted(specs.items())}


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specifications)
    return manager


def check_hook_api(plugin: object, who: str, candidate: Candidate) -> PluginError | None:
    """The error that makes a plugin incompatible, if its HOOK_API excludes ours. PluginError if it cannot be read.

    An installed plugin must state its range; an object or a file is written beside the code that runs it.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    stated = getattr(plugin, "HOOK_API", None)
    if stated is None and not inspect.ismodule(plugin):
        stated = getattr(inspect.getmodule(type(plugin)), "HOOK_API", None)
        stated = stated if isinstance(stated, str) else None  # the module may have imported our own HOOK_API
    ours = ".".join(map(str, HOOK_API))
    if stated is None and candidate.source != "entry point":
        return None
    try:
        accepted = SpecifierSet(stated) if isinstance(stated, str) else None
    except InvalidSpecifier:
        accepted = None
    if accepted is None or not len(accepted):
        raise PluginError(
            f"Plugin {who} does not state the hook API it was written for.",
            got=f"HOOK_API = {stated!r}",
            expected=f'a version range as text, for example HOOK_API = ">={ours},<{HOOK_API[0] + 1}"',
        )
    if accepted.contains(ours):
        return None
    older = any(_is_above(s.operator, s.version, ours) for s in accepted)
    mended = "qwenimage-core" if older else candidate.distribution
    return PluginError(
        f"Plugin {who} was written for another hook API.",
        got=f"hook API {ours}, of this qwenimage-core",
        expected=f"hook API {accepted}",
        mend=f"pip install --upgrade {mended}" if mended else f"bring the plugin to hook API {ours}",
    )


def _is_above(operator: str, version: str, ours: str) -> bool:
    """Whether a clause asks for more than we have, so that the core is what must be upgraded."""
    from packaging.version import Version

    return operator in (">=", ">", "==", "~=", "===") and Version(version.removesuffix(".*")) >= Version(ours)


def resolve_hooks(plugin: object, who: str) -> Hooks:
    """The plugin's hooks as plain callables with the arguments they take. PluginError for anything that would be
    left out in silence: an unknown hook, an argument that no hook has, a hook's name without @hookimpl.

    Each plugin gets a pluggy manager of its own, so a refused plugin leaves nothing behind.
    """
    arguments = hook_arguments()
    manager = _manager()
    found: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            _refuse_unmarked(plugin, attribute, arguments, who)
            continue
        name = options.get("specname") or attribute
        if name not in arguments:
            if options.get("optionalhook"):
                continue
            raise _unknown_hook(name, arguments, who)
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"Plugin {who}: {name} is a hook wrapper; hooks here are plain functions.")
        function = getattr(plugin, attribute)
        found[name] = (function, _taken(function, name, arguments[name], who))
    if not found:
        raise PluginError(
            f"Plugin {who} has no hook at all.",
            expected=f"at least one of: {', '.join(arguments)}",
            mend="mark its functions with `from qwenimage_core.hooks import hookimpl`",
        )
    manager.register(plugin, same_name(who))
    manager.check_pending()
    return MappingProxyType(found)


def _refuse_unmarked(plugin: object, attribute: str, arguments: Mapping[str, Any], who: str) -> None:
    value = inspect.getattr_static(plugin, attribute, None)
    if attribute in arguments and isinstance(value, FunctionType | staticmethod | classmethod):
        raise PluginError(
            f"Plugin {who} has a function {attribute!r}, the name of a hook, that is not marked as one.",
            mend=f"put @hookimpl above {attribute}, or give it another name",
        )


def _unknown_hook(name: str, arguments: Mapping[str, Any], who: str) -> PluginError:
    near = get_close_matches(name, arguments, n=1, cutoff=0.5)
    return PluginError(
        f"Plugin {who} marks {name!r} as a hook, and there is no such hook.",
        expected=f"one of: {', '.join(arguments)}",
        mend=f"did you mean {near[0]}?" if near else "rename it, or see qwenimage_core/hooks.py",
    )


def _taken(function: Callable[..., Any], hook: str, allowed: tuple[str, ...], who: str) -> tuple[str, ...]:
    """The names a hook function takes, each of which the hook must have."""
    parameters = inspect.signature(function).parameters.values()
    strangers = [
        str(p) for p in parameters if p.name not in allowed or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if strangers:
        raise PluginError(
            f"Plugin {who}: {hook} takes arguments that this hook does not have.",
            got=", ".join(strangers),
            expected=f"some of: {', '.join(allowed) or 'no argument'}",
        )
    return tuple(p.name for p in parameters)
