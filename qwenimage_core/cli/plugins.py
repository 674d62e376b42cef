"""`plugins list|show|doctor`. `list` reads metadata only; `show` imports the one it names; `doctor` imports all."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Annotated

import typer

from qwenimage_core.cli.report import columns
from qwenimage_core.cli.session import Json, PluginFiles
from qwenimage_core.errors import QwenImageError
from qwenimage_core.hooks import HOOK_API
from qwenimage_core.metadata import versions
from qwenimage_core.registry import PluginRecord, PluginRegistry

app = typer.Typer(help="See which plugins there are and whether they work.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="a plugin's name", show_default=False)]
HEAVY = ("torch", "transformers", "modelscope", "diffusers")
SLOW_MS = 300


@app.command("list")
def list_plugins(plugin: PluginFiles = None, as_json: Json = False) -> None:
    """List every plugin with its state. Imports none of them."""
    records = PluginRegistry.discover(plugin or ()).records
    if as_json:
        print(
            json.dumps({"hook_api": ".".join(map(str, HOOK_API)), "plugins": [r.as_dict() for r in records]})
        )
        return
    if not records:
        print('No plugin is installed. For example: pip install "qwenimage-core[edit]"')
        return
    rows = [(r.name, r.version or "-", r.distribution or r.target, r.state) for r in records]
    print(columns(("plugin", "version", "from", "state"), *rows))


@app.command()
def show(name: Name, plugin: PluginFiles = None, as_json: Json = False) -> None:
    """Import one plugin and show its hooks, its request fields, and how long the import took."""
    record = PluginRegistry.discover(plugin or ()).load(name)
    if as_json:
        print(json.dumps(record.as_dict()))
    else:
        print("\n".join(_lines(record)))
    if record.error is not None:
        raise record.error


def _lines(r: PluginRecord) -> list[str]:
    facts = {
        "distribution": r.distribution,
        "source": f"{r.source} {r.target}",
        "state": r.state,
        "hooks": ", ".join(r.hooks),
        "fields": ", ".join(r.fields),
        "import": f"{r.import_ms} ms" if r.import_ms is not None else None,
    }
    return [
        f"{r.name} {r.version or '(no version)'}",
        *(f"  {k + ':':<14}{v}" for k, v in facts.items() if v),
    ]


@app.command()
def doctor(plugin: PluginFiles = None, as_json: Json = False) -> None:
    """Load every plugin and say what is wrong and how to mend it; exit code 1 if anything is."""
    records: tuple[PluginRecord, ...] = ()
    faults: list[QwenImageError] = []
    try:
        registry = PluginRegistry.discover(plugin or ())
        records = registry.load_all()
        faults += [r.error for r in records if r.error is not None and r.state != "blocked"]
        registry.request_model()
    except QwenImageError as error:
        faults.append(error)
    remarks = [text for r in records if (text := _remark(r))]
    environment = {"python": platform.python_version(), **versions()}
    if as_json:
        content = {
            "environment": environment,
            "plugins": [r.as_dict() for r in records],
            "faults": [fault.as_dict() for fault in faults],
            "remarks": remarks,
        }
        print(json.dumps(content))
    else:
        print(", ".join(f"{name} {version}" for name, version in environment.items()))
        for r in records:
            print("\n".join(_lines(r)))
        print("\n".join([*remarks, *(f"\n{fault}" for fault in faults)] or ["Everything is in order."]))
    if faults:
        raise typer.Exit(1)


def _remark(r: PluginRecord) -> str | None:
    """What slows everybody down without being wrong: heavy imports, found out in an interpreter of its own."""
    if r.state != "loaded" or r.source != "entry point" or (r.import_ms or 0) < SLOW_MS:
        return None
    code = f"import sys, {r.target.split(':')[0]}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    ).stdout.split()
    why = f"; it imports {', '.join(found)}: move that inside the functions that need it" if found else ""
    return f"{r.name} takes {r.import_ms} ms to import{why}."
