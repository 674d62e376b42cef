"""Rules of the whole test run: what is collected by default, and no network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Sessions of their own: the first needs the peers installed, the second measures time.
NAMED_ONLY = {Path(__file__).parent / "parity", Path(__file__).parent / "benchmarks"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders that must be named, unless the command line names them or something in them."""
    if collection_path not in NAMED_ONLY:
        return None
    named = (config.invocation_params.dir / str(arg).split("::")[0] for arg in config.args)
    return not any(path.resolve().is_relative_to(collection_path) for path in named)


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
