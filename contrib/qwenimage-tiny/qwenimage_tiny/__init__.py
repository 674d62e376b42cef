"""A tiny member of the Qwen-Image family in hub layout, and the world, trainers and judge that made it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the embedded model, in hub layout. What the name "tiny" stands for in `from_pretrained`."""
    return Path(__file__).parent / "model"
