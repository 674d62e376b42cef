"""What must be in every wheel and sdist, and what must not: `python archives.py FOLDER` lists what is wrong there.

Run by `nox -s build` on what it built; only the standard library is needed.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path, PurePosixPath

LICENSE_TITLE = "Apache License\n                           Version 2.0, January 2004"
UNWANTED_FOLDERS = {"tests", "__pycache__", "dist", "build", "node_modules"}
UNWANTED_SUFFIXES = {".pyc", ".pyo", ".log"}


def contents(archive: Path) -> dict[str, str]:
    """The files of a wheel or sdist by their path inside; text of those that are read here, else empty.

    An sdist's paths are without its outermost folder.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if not name.endswith("/")]
            return {name: wheel.read(name).decode() if _is_read(name) else "" for name in names}
    with tarfile.open(archive) as sdist:
        found = {}
        for member in filter(tarfile.TarInfo.isfile, sdist.getmembers()):
            name, file = member.name.partition("/")[2], sdist.extractfile(member)
            found[name] = file.read().decode() if file and _is_read(name) else ""
        return found


def faults(archive: Path) -> list[str]:
    """One line for each thing that is missing from a wheel or sdist or should not be there."""
    files = contents(archive)
    wheel = archive.suffix == ".whl"
    info = next((n.split("/")[0] for n in files if n.endswith(".dist-info/METADATA")), "") if wheel else ""
    license_file, metadata = (
        (f"{info}/licenses/LICENSE", f"{info}/METADATA") if wheel else ("LICENSE", "PKG-INFO")
    )
    found = []
    if LICENSE_TITLE not in files.get(license_file, ""):
        found.append(f"no Apache-2.0 text at {license_file}")
    message = message_from_string(files.get(metadata, ""))
    if message["License-Expression"] != "Apache-2.0":
        found.append(f"License-Expression is {message['License-Expression']}")
    if (
        len(str(message.get_payload()).strip()) < 200
        or message["Description-Content-Type"] != "text/markdown"
    ):
        found.append("the README is not its long description")
    package = archive.name.split("-")[0]
    if f"{package}/py.typed" not in files:
        found.append(f"no {package}/py.typed")
    for name in map(PurePosixPath, files):
        if UNWANTED_FOLDERS & set(name.parts[:-1]) or name.suffix in UNWANTED_SUFFIXES:
            found.append(f"{name} does not belong there")
    return [f"{archive.name}: {fault}" for fault in found]


def _is_read(name: str) -> bool:
    return PurePosixPath(name).name in ("LICENSE", "METADATA", "PKG-INFO")


if __name__ == "__main__":
    archives = [*Path(sys.argv[1]).glob("qwenimage*.whl"), *Path(sys.argv[1]).glob("qwenimage*.tar.gz")]
    wrong = [fault for archive in sorted(archives) for fault in faults(archive)]
    sys.exit("\n".join(wrong) or (None if archives else f"no wheel or sdist in {sys.argv[1]}"))
