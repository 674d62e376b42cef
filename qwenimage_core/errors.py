"""Errors that say what is wrong, what was got, what was expected and how to mend it."""

from __future__ import annotations

from typing import Any


class QwenImageError(Exception):
    """Base of every error this project raises on purpose.

    The four parts are kept apart so that the command line can print them as lines and `--json` as fields.
    Each part is one sentence or value; the whole text stays within one screen.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        expected: object | None = None,
        mend: str | None = None,
    ) -> None:
        self.what = what
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.mend = mend
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.got is not None:
            parts.append(f"  got:      {self.got}")
        if self.expected is not None:
            parts.append(f"  expected: {self.expected}")
        if self.mend is not None:
            parts.append(f"  to mend:  {self.mend}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, str | None]:
        """The same parts for `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "got": self.got,
            "expected": self.expected,
            "mend": self.mend,
        }


class RequestError(QwenImageError, ValueError):
    """A request that cannot be run as given: unknown field, value out of range, a value that could not act."""


class LoadError(QwenImageError):
    """A file or folder that is not what it should be: missing, truncated, of another architecture."""


class MemoryLimitError(QwenImageError):
    """A limit on memory that cannot be kept. `least` are the bytes that would do."""

    def __init__(self, what: str, *, least: int | None = None, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.least = least


class AdapterError(QwenImageError):
    """A LoRA that does not fit: no or partial matches, unknown key format, wrong shapes."""


class PluginError(QwenImageError):
    """A plugin that is missing, failed to import, is blocked or needs another hook API."""


class ConflictError(PluginError):
    """Two plugins that replace the same thing, or a pair that a rule refuses."""


class HookError(PluginError):
    """A plugin's own failure inside a hook, with the place where it happened."""


class DenoiseError(QwenImageError):
    """The loop cannot go on: values that are not finite."""


class QwenImageWarning(UserWarning):
    """Something that was asked for and is not done, or is done in another way than the words suggest."""
