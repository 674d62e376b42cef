"""The error of a training run."""

from __future__ import annotations

from qwenimage_core.errors import QwenImageError


class TrainingError(QwenImageError):
    """A run that cannot begin, go on or be resumed. What was saved before it stays as it is."""
