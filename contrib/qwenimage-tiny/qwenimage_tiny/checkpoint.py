"""Training state on disk: written beside and renamed, so that a stop at any moment leaves a whole file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers and containers of them only: read back with `weights_only`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    torch.save(state, beside)
    beside.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state, or None where training has not begun."""
    return torch.load(path, weights_only=True) if path.exists() else None
