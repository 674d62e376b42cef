"""The command line as a user has it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwenimage_core import discovery
from qwenimage_core.cli.main import main

PLUGIN = '''
from pydantic import Field
from qwenimage_core.hooks import hookimpl
from qwenimage_core.request import FieldsModel, Picture

HOOK_API = ">=1.0,<2"

class Lamp(FieldsModel):
    """One lamp."""
    power: float = Field(1.0, ge=0)
    colour: str = "white"
    picture: Picture | None = None

class Fields(FieldsModel):
    glow: float | None = Field(None, ge=0, le=1, description="how much it glows [0 to 1]")
    glow_pictures: Picture | list[Picture] | None = Field(None, description="what glows")
    glow_lamps: list[Lamp] | None = Field(None, description="lamps")
    glow_resize: bool = Field(True, description="fit the pictures")

@hookimpl
def request_fields():
    return Fields

@hookimpl
def commands(app):
    @app.command("glow-info")
    def info(loud: bool = False) -> None:
        """Say that it glows."""
        print("IT GLOWS" if loud else "it glows")
'''


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error of a call with --json."""
        return json.loads(self.err)


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("generate", "a cat", ...) in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("QWENIMAGE_DEBUG", raising=False)

    def run(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def site(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """site(name, code, group=...): an installed distribution `qwenimage-NAME` with module `fake_NAME`."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def install(name: str, code: str, *, group: str = "qwenimage.plugins", attribute: str = "") -> None:
        module = f"fake_{name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(code)
        info = folder / f"qwenimage_{name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: qwenimage-{name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}{attribute}\n")
        discovery.refresh()

    discovery.refresh()
    yield install
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]
    monkeypatch.undo()
    discovery.refresh()


@pytest.fixture
def glow(site: Callable[..., None]) -> None:
    site("glow", PLUGIN)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in hub layout."""
    from qwenimage_core.testing import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
