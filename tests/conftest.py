"""Rules of the whole test run: what is collected by default, what counts as installed, and no network."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No time limit a case: machines that run this are shared, and a slow case is no wrong one.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# Sessions of their own: the first needs the peers installed, the second measures time.
HERE = Path(__file__).parent
NAMED_ONLY = {HERE / "parity", HERE / "benchmarks"}
# Tests of the core are about the core alone, whatever else of this repository is installed; these are about all of it.
OF_ALL_DISTRIBUTIONS = [HERE / name for name in ("docs", "parity", "recipes", "repo")]
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders that must be named, unless the command line names them or something in them."""
    if collection_path not in NAMED_ONLY:
        return None
    named = (config.invocation_params.dir / str(arg).split("::")[0] for arg in config.args)
    return not any(path.resolve().is_relative_to(collection_path) for path in named)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around a whole test, so that fixtures of every scope that it is the first to need see the same."""
    if any(item.path.is_relative_to(folder) for folder in OF_ALL_DISTRIBUTIONS):
        return (yield)
    with only_the_core():
        return (yield)


@contextmanager
def only_the_core() -> Iterator[None]:
    """Hide installed plugins, anybody's, and the embedded model from whoever asks for metadata; throw-away ones, which
    tests install into folders of their own, stay visible."""
    discover = importlib.metadata.Distribution.discover
    site = Path(sysconfig.get_path("purelib")).resolve()

    def visible(**where: Any) -> Iterable[importlib.metadata.Distribution]:
        for found in discover(**where):
            name = found.name.lower().replace("_", "-")
            ours = name.startswith("qwenimage-") and name != "qwenimage-core"
            hidden = ours or found.entry_points.select(group="qwenimage.plugins")
            if not (hidden and Path(str(found.locate_file(""))).resolve() == site):
                yield found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata.Distribution, "discover", staticmethod(visible))
        _scan_again()
        yield
    _scan_again()


def _scan_again() -> None:
    discovery = sys.modules.get("qwenimage_core.discovery")
    if discovery is not None:
        discovery.refresh()


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse connections to other machines: a test that needs one would pass here and fail on a machine without."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise OSError(f"tests do not reach the network; this one connects to {address[0]}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
