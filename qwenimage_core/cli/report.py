"""What the command line says when something is wrong: on stderr, four lines for people or one JSON object."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from qwenimage_core.catalogue import PEER_NAMES, extra_of_command, known_fields
from qwenimage_core.errors import QwenImageError, RequestError
from qwenimage_core.parallel.launch import Launch, deserted
from qwenimage_core.registry import PluginRegistry

UNEXPECTED = "This is a fault of qwenimage itself; run again with QWENIMAGE_DEBUG=1 and report the traceback"


class UsageMistake(RequestError):
    """Options or commands that the command line does not have. Exit code 2."""


def show(error: BaseException, *, as_json: bool, debug: bool) -> None:
    """Print an error; with `debug` its traceback before it."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if deserted(error):
        error = QwenImageError(
            "Another process of this run has ended.", mend="mend its error, which it has printed itself"
        )
    parts = error.as_dict() if isinstance(error, QwenImageError) else _unexpected(error)
    notes = list(getattr(error, "__notes__", ()))
    if (launch := Launch.found()) is not None:
        notes.append(f"in process {launch.rank} of 0..{launch.world - 1}")
    if as_json:
        print(json.dumps(parts | {"notes": notes}), file=sys.stderr)
        return
    text = (
        str(error) if isinstance(error, QwenImageError) else f"{parts['what']}\n  to mend:  {parts['mend']}"
    )
    print("\n".join([f"error: {text}", *(f"  ({note})" for note in notes)]), file=sys.stderr)


def columns(*rows: Sequence[str]) -> str:
    """Rows as columns, never cut off: names in them are there to be copied, and other programs read them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _unexpected(error: BaseException) -> dict[str, str | None]:
    what = f"{type(error).__name__}: {str(error)[:1000]}"
    return {"error": type(error).__name__, "what": what, "got": None, "expected": None, "mend": UNEXPECTED}


def mistake(error: Any, command: str | None, registry: PluginRegistry | None) -> QwenImageError:
    """The words for a usage error of the parser: for options and commands that an absent plugin would bring, its
    pip line; for others the nearest there is."""
    option = getattr(error, "option_name", None)
    if isinstance(option, str) and "No such option" in error.format_message():
        return _unknown_option(option, error, registry)
    if command is not None and "No such command" in error.format_message():
        extra = extra_of_command(command)
        if extra is not None:
            return RequestError(f"`qwenimage {command}` needs {extra.distribution}: {extra.pip}")
    mend = None
    if "unexpected extra argument" in error.format_message():
        mend = "put the prompt in quotes"
    usage = getattr(getattr(error, "ctx", None), "command_path", "qwenimage")
    return UsageMistake(error.format_message(), mend=mend or f"see `{usage} --help`")


def _unknown_option(option: str, error: Any, registry: PluginRegistry | None) -> QwenImageError:
    field = option.lstrip("-").replace("-", "_")
    opts = [o for p in error.ctx.command.params if not getattr(p, "hidden", False) for o in p.opts]
    own = {o.lstrip("-").replace("-", "_"): o for o in opts if o.startswith("--")}
    near = next(iter(get_close_matches(field, [*own, *known_fields()], n=1)), None)
    if registry is not None and (field in PEER_NAMES or near is None or near not in own):
        return registry.explain_unknown(field)
    return UsageMistake(
        f"There is no option {option}.",
        mend=f"did you mean {own.get(near, '--' + near.replace('_', '-'))}?"
        if near
        else f"see `{error.ctx.command_path} --help`",
    )
