"""The command `qwenimage`: puts the sub-commands together, and turns every error into words and an exit code.

Exit codes: 0 done, 1 an error that says what to mend, 2 a mistake in the options, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any, Self, cast

import typer
from typer.models import CommandInfo, TyperInfo

from qwenimage_core.cli import again, generate, memory, report
from qwenimage_core.errors import ConflictError, QwenImageError, QwenImageWarning
from qwenimage_core.parallel.launch import leads
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.version import __version__

GROUPS = ("plugins", "models", "recipes", "lora")
BUILT_IN = ("generate", "explain", "again", "memory", *GROUPS)
DRAWING = ("generate", "explain")
# typer may carry a click of its own; this is the UsageError of whichever it uses
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])


@dataclass(frozen=True)
class Early:
    """What must be known before the options exist, because plugins bring options and commands themselves."""

    command: str | None
    plugins: tuple[str, ...]
    no_plugins: bool
    as_json: bool
    debug: bool

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Self:
        words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        files = [b for a, b in pairwise(words) if a == "--plugin"]
        files += [w.removeprefix("--plugin=") for w in words if w.startswith("--plugin=")]
        return cls(
            command=next((w for w in words if not w.startswith("-")), None),
            plugins=tuple(files),
            no_plugins="--no-plugins" in words,
            as_json="--json" in words,
            debug="--debug" in words[:1] or os.environ.get("QWENIMAGE_DEBUG", "") not in ("", "0"),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors are printed on stderr, as JSON where --json is given."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    early = Early.of(words)
    registry: PluginRegistry | None = None
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app, registry = build(early)
            command = typer.main.get_command(app)
            code = command.main(args=words, prog_name="qwenimage", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except USAGE_ERROR as error:
            shown = report.mistake(error, early.command, registry)
            report.show(shown, as_json=early.as_json, debug=early.debug)
            return 2 if isinstance(shown, report.UsageMistake) else 1
        except Exception as error:
            report.show(error, as_json=early.as_json, debug=early.debug)
            return 1
    if code == 130:
        print("Interrupted; what was finished is kept, nothing is half written.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, QwenImageWarning) and leads():
        print(f"warning: {message}", file=sys.stderr)


def build(early: Early) -> tuple[typer.Typer, PluginRegistry | None]:
    """The application with what this call needs: plugins are loaded only if they can have a part in it."""
    app = typer.Typer(
        help="Draw with the Qwen-Image family of models.", no_args_is_help=True, add_completion=False
    )
    app.callback()(_options)
    registry = None
    trouble: str | None = None
    if early.command in DRAWING or early.command not in BUILT_IN:
        try:
            registry = PluginRegistry.discover(early.plugins, disable_all=early.no_plugins)
            registry.load_all()
        except QwenImageError as error:
            if early.command is not None:
                raise
            trouble = error.what  # the help itself is always to be had
    generate.add_commands(app, registry if early.command in DRAWING else None)
    app.command()(again.again)
    app.command()(memory.memory)
    for name in GROUPS:
        app.add_typer(import_module(f"qwenimage_core.cli.{name}").app, name=name)
    if registry is not None and early.command not in BUILT_IN:
        _add_plugin_commands(app, registry)
        broken = [f"{r.name} ({r.state})" for r in registry.records if r.state in ("failed", "incompatible")]
        trouble = f"Plugins that cannot be used: {', '.join(broken)}." if broken else trouble
    if trouble:
        app.info.epilog = f"{trouble} See `qwenimage plugins doctor`."
    return app, registry


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qwenimage-core {__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="print tracebacks (or QWENIMAGE_DEBUG=1)")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Draw with the Qwen-Image family of models."""


def _add_plugin_commands(app: typer.Typer, registry: PluginRegistry) -> None:
    """What the plugins' `commands` hooks add; a name that is taken is an error that names both owners."""
    owners = dict.fromkeys(BUILT_IN, "qwenimage-core")
    for plugin in registry.loaded:
        own = typer.Typer()
        plugin.call("commands", app=own)
        added: list[CommandInfo | TyperInfo] = [*own.registered_commands, *own.registered_groups]
        for command in added:
            name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
            other = owners.setdefault(name, plugin.name)
            if other != plugin.name:
                raise ConflictError(f"{other} and {plugin.name} both add the command `{name}`.")
            command.rich_help_panel = f"Plugin {plugin.name} {plugin.version}"
        app.registered_commands += own.registered_commands
        app.registered_groups += own.registered_groups
