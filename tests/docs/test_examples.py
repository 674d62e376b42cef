"""Every example of the documentation runs as it stands.

`python`, `bash` and `console` blocks of a page are run in order, in one empty folder and one namespace; the output
lines of a console block are compared. What cannot run offline and within seconds is fenced as `text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "plugins/qwenimage-*/README.md", "contrib/qwenimage-*/README.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_examples_of_a_page_run(page: Path, run_page: Callable[[Path], int]) -> None:
    run_page(ROOT / page)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nassert 1 + 1 == 3\n```\n", "assert 1"),
        ("```bash\nfalse\n```\n", "ended with 1"),
        ("```console\n$ echo one\ntwo\n```\n", "it printed:"),
        ("```pyton\n1\n```\n", "fence it as one of"),
    ],
    ids=["python", "bash", "console", "misspelt"],
)
def test_an_example_that_fails_is_reported(
    text: str, complaint: str, tmp_path: Path, run_page: Callable[[Path], int]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError) as caught:
        run_page(page)
    assert complaint in str(caught.value) or complaint in str(caught.traceback[-1].statement)


def test_a_page_shares_folder_and_names(tmp_path: Path, run_page: Callable[[Path], int]) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 3\n```\n"
        "```python file=mine.py\nanswer = 42\n```\n"
        "```console\n$ cat mine.py\nanswer = ...\n```\n"
        "```python\nfrom pathlib import Path\nassert x == 3\nassert Path('mine.py').exists()\n```\n"
        "```text\nnot run\n```\n"
    )
    assert run_page(page) == 3


def test_the_first_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_page) -> None:
    """The generating half of the README's first command, as it stands there."""
    first = re.search(r"^```text\n(.*)\n```", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert first
    page = tmp_path / "first.md"
    page.write_text(f"```bash\n{first[1].split(' && ')[1]}\n```\n")
    run_page(page)
    picture = tmp_path / first[1].split(" -o ")[1]
    assert picture.read_bytes().startswith(b"\x89PNG")
