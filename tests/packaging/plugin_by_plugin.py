"""Each plugin's wheel alone with the core: exactly its fields, and a clear error once it is removed.

    python plugin_by_plugin.py PYTHON FOLDER

PYTHON is that of an environment with the core's wheel and what it depends on; our other distributions are uninstalled
from it first. FOLDER holds the wheels. Run by `nox -s build`, from a folder that is not the checkout; the fields that
are expected are those of the core's catalogue, which knows the names without any plugin.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenimage_core.catalogue import EXTRAS, Extra

HERE = Path(__file__).parent


def wrong(seen: Mapping[str, Any], alone: Extra | None) -> list[str]:
    """How what `installed.py` saw differs from what one plugin (or none) brings."""
    found = []
    expected = sorted(alone.fields) if alone else []
    if seen["plugins"] != ([alone.name] if alone else []):
        found.append(f"plugins {seen['plugins']}")
    if seen["fields"] != expected:
        found.append(f"fields {seen['fields']}, not {expected}")
    for extra in EXTRAS:
        for field in extra.fields if extra != alone else ():
            said = seen["refused"].get(field, "nothing")
            if field not in said or extra.distribution not in said or extra.pip not in said:
                found.append(f"{field} is refused with: {said}")
    return [f"with {alone.distribution if alone else 'the core alone'}: {line}" for line in found]


def check(python: str, wheels: Path) -> list[str]:
    """Install and uninstall the plugins' wheels one after the other; a line for each thing that is wrong."""
    ours = [extra.distribution for extra in EXTRAS]
    _run(python, "-m", "pip", "uninstall", "-q", "-y", *ours)
    found = wrong(_seen(python), None)
    for extra in (e for e in EXTRAS if e.fields):
        [wheel] = wheels.glob(f"{extra.distribution.replace('-', '_')}-*.whl")
        _run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel))
        _run(python, "-m", "pip", "check")
        found += wrong(_seen(python), extra)
        found += _listed(python, [extra.name])
        _run(python, "-m", "pip", "uninstall", "-q", "-y", extra.distribution)
        found += wrong(_seen(python), None)
        found += _listed(python, [])
        found += _command_refuses(python, extra)
        print(f"{extra.distribution}: {', '.join(extra.fields)}", flush=True)
    return found


def _seen(python: str) -> Any:
    return json.loads(_run(python, str(HERE / "installed.py")).stdout)


def _listed(python: str, expected: Sequence[str]) -> list[str]:
    """What is wrong with `qwenimage plugins list --json`."""
    answer = json.loads(_run(_command(python), "plugins", "list", "--json").stdout)
    names = [plugin["name"] for plugin in answer["plugins"]]
    return [] if names == list(expected) else [f"`plugins list` has {names}, not {expected}"]


def _command_refuses(python: str, extra: Extra) -> list[str]:
    """What is wrong with the error for an option of a plugin that is not installed."""
    option = "--" + extra.fields[0].replace("_", "-")
    line = [_command(python), "generate", "a circle", option, "x.png"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    named = f"qwenimage-core[{extra.name}]" in done.stderr
    return [] if done.returncode and named else [f"`generate {option}` says: {done.stdout}{done.stderr}"]


def _command(python: str) -> str:
    """The `qwenimage` beside this python."""
    return str(Path(python).with_name("qwenimage"))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    sys.exit("\n".join(check(sys.argv[1], Path(sys.argv[2]))) or None)
