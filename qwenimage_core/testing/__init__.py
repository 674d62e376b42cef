"""For tests, here and in plugins: tiny random models in the exact hub layout (`write_tiny_checkpoint`)."""

from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

__all__ = ["write_tiny_checkpoint"]
