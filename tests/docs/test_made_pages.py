"""Pages that scripts write are what their scripts would write now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("make_hooks", "reference"),
        ("make_composition", "page"),
        ("make_models", "page"),
        ("make_memory", "page"),
        ("make_training_arguments", "page"),
    ],
)
def test_a_page_is_what_its_script_makes(script: str, made: str) -> None:
    names = runpy.run_path(str(DOCS / f"{script}.py"))
    assert names["PAGE"].read_text("utf-8") == names[made](), f"python docs/{script}.py"
