"""The check that `nox -s build` makes of wheels and sdists finds what is missing and what is too much."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from .archives import faults

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text()
METADATA = (
    "Metadata-Version: 2.4\nName: qwenimage-a\nLicense-Expression: Apache-2.0\n"
    "Description-Content-Type: text/markdown\n\n# qwenimage-a\n" + "It says what it is for. " * 10
)
WHEEL = {
    "qwenimage_a/__init__.py": "",
    "qwenimage_a/py.typed": "",
    "qwenimage_a-0.1.0.dist-info/METADATA": METADATA,
    "qwenimage_a-0.1.0.dist-info/licenses/LICENSE": LICENSE,
}
SDIST = {"qwenimage_a/py.typed": "", "PKG-INFO": METADATA, "LICENSE": LICENSE, "README.md": ""}


def wheel(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "qwenimage_a-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def sdist(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "qwenimage_a-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"qwenimage_a-0.1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_complete_archives_have_no_faults(tmp_path: Path) -> None:
    assert faults(wheel(tmp_path, WHEEL)) == []
    assert faults(sdist(tmp_path, SDIST)) == []


@pytest.mark.parametrize("missing", [name for name in WHEEL if "__init__" not in name])
def test_what_a_wheel_lacks_is_found(tmp_path: Path, missing: str) -> None:
    assert faults(wheel(tmp_path, {k: v for k, v in WHEEL.items() if k != missing}))


@pytest.mark.parametrize("missing", [name for name in SDIST if name != "README.md"])
def test_what_an_sdist_lacks_is_found(tmp_path: Path, missing: str) -> None:
    assert faults(sdist(tmp_path, {k: v for k, v in SDIST.items() if k != missing}))


@pytest.mark.parametrize(
    "extra", ["tests/test_a.py", "qwenimage_a/tests/b.py", "qwenimage_a/__pycache__/a.pyc"]
)
def test_tests_and_caches_are_found(tmp_path: Path, extra: str) -> None:
    for make, files in ((wheel, WHEEL), (sdist, SDIST)):
        [fault] = faults(make(tmp_path, {**files, extra: ""}))
        assert extra in fault


def test_another_license_is_found(tmp_path: Path) -> None:
    [fault] = faults(sdist(tmp_path, {**SDIST, "LICENSE": "MIT License"}))
    assert "Apache-2.0" in fault
