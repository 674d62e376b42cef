"""From a name in the metadata to a file inside the dataset's root, and nowhere else."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from qwenimage_core.errors import LoadError

FILE_MEND = "name files relative to --dataset_base_path"


class Root:
    """The folder that holds a dataset's files.

    A name must be relative, without "..", and must lead to a file inside the folder after links are followed:
    metadata comes from elsewhere and must not reach the rest of the machine. http(s) names are refused too: a run
    must not change, stop or wait with somebody's server, and what cannot be listed cannot be told to have changed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder or ".").expanduser()
        if not self.folder.is_dir():
            raise LoadError(
                "The dataset's folder is not there.",
                got=self.folder,
                expected="a folder",
                mend="check --dataset_base_path",
            )
        self._real = self.folder.resolve()

    def find(self, name: object, where: str) -> Path:
        """The file called `name`; `where` names the row and column in errors."""
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise LoadError(
                f"{where}: this is no file name.", got=repr(name), expected="text", mend=FILE_MEND
            )
        if name.startswith(("http://", "https://")):
            raise LoadError(
                f"{where}: files are not fetched while training.",
                got=name,
                expected="a file inside the dataset's folder",
                mend="download it once and name the copy",
            )
        if (
            PurePosixPath(name).is_absolute()
            or PureWindowsPath(name).is_absolute()
            or ".." in Path(name).parts
        ):
            raise self._outside(name, where)
        path = self.folder / name
        real = path.resolve()
        if not real.is_relative_to(self._real):
            raise self._outside(name, where, real)
        if not real.is_file():
            raise LoadError(
                f"{where}: there is no such file.", got=path, expected="a picture file", mend=FILE_MEND
            )
        return path

    def _outside(self, name: str, where: str, real: Path | None = None) -> LoadError:
        return LoadError(
            f"{where}: this path leaves the dataset's folder.",
            got=name if real is None else f"{name}, a link to {real}",
            expected=f"a file inside {self.folder}",
            mend="copy the file into the folder and name it relative to it",
        )
