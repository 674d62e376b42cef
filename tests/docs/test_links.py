"""Links between the pages of the documentation lead somewhere, and the index leads to every page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def targets(page: Path) -> list[Path]:
    """What a page links to within the repository."""
    return [(page.parent / found).resolve() for found in LINK.findall(page.read_text())]


def test_every_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[cp]*/qwenimage-*/README.md")]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in targets(page)
        if not target.exists()
    ]
    assert dead == []


def test_the_index_reaches_every_page() -> None:
    """Directly or over other pages."""
    reached, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md" and page.is_relative_to(ROOT / "docs"):
            reached.add(page)
            todo += targets(page)
    assert reached == set(ROOT.glob("docs/**/*.md"))
