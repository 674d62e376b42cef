"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. When the block ends, its content is on disk and it becomes `path`; if it ends
    with an error it is taken away, and what was at `path` stays as it was. OSError as of any writing.

    The file gets the mode of new files (by the umask): libraries that write through temporary files, safetensors
    among them, would leave it readable for its owner alone.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            mode = S_IMODE(os.fstat(stream.fileno()).st_mode)
        yield partial
        partial.chmod(mode)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
