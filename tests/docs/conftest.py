"""Reading the fenced blocks of a Markdown page and running them."""

from __future__ import annotations

import doctest
import linecache
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)$")
RUN = {"python", "bash", "console"}
# Not run: everything that is not a command or Python. A new word here is a decision, not a typing error.
SHOWN = {"text", "toml", "json", "mermaid", "diff"}


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the number of its first line of content in the page, counted from 1."""

    page: Path
    line: int
    language: str
    save_as: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order. `python file=plugin.py` as the opening words saves instead of running."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        start, indent = number, len(opening["indent"])
        while (
            lines[number].strip() != "```"
        ):  # an unclosed block ends in an IndexError, which names this page
            number += 1
        language, *options = opening["info"].split() or [""]
        files = [option.removeprefix("file=") for option in options if option.startswith("file=")]
        assert len(files) == len(options), (
            f"{page}:{start}: only file=NAME may follow the language: {opening['info']}"
        )
        text = "".join(line[indent:] + "\n" for line in lines[start:number])
        yield Block(page, start + 1, language, files[0] if files else None, text)
        number += 1


def run_python(block: Block, module: types.ModuleType) -> None:
    """Run in the page's namespace; a traceback shows the lines of the page."""
    source = "\n" * (block.line - 1) + block.text
    linecache.cache[block.place] = (len(source), None, source.splitlines(keepends=True), block.place)
    exec(compile(source, block.place, "exec"), module.__dict__)


def shell(command: str, place: str) -> str:
    """Run in bash with the scripts of this Python first on the path; what it printed, both streams together."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A wide terminal without colour, so that output is the same wherever it is run.
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{place}: {command}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def run_console(block: Block) -> None:
    """Run each `$ ` command and compare what it prints with the lines below it, where there are any; `...` fits all."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0].strip() and len(parts) > 1, f"{block.place}: a console block begins with '$ '"
    for part in parts[1:]:
        command, _, expected = part.partition("\n")
        got = shell(command, block.place)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        fits = not expected.strip() or doctest.OutputChecker().check_output(expected, got, flags)
        assert fits, f"{block.place}: $ {command}\nthe page shows:\n{expected}\nit printed:\n{got}"


@pytest.fixture
def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Run all blocks of a page in one empty folder and one namespace; the number of blocks that were run."""
    monkeypatch.chdir(tmp_path)

    def run(page: Path) -> int:
        module = types.ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", module)  # dataclasses and pydantic look their module up
        count = 0
        for block in blocks(page):
            assert block.language in RUN | SHOWN, f"{block.place}: fence it as one of {sorted(RUN | SHOWN)}"
            if block.save_as is not None:
                (tmp_path / block.save_as).write_text(block.text)
            elif block.language in RUN:
                count += 1
                _run(block, module)
        return count

    return run


def _run(block: Block, module: types.ModuleType) -> None:
    if block.language == "python":
        run_python(block, module)
    elif block.language == "bash":
        shell(block.text, block.place)
    else:
        run_console(block)
