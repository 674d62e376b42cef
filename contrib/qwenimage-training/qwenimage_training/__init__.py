"""Training for qwenimage: `qwenimage train`, on the same plans that draw pictures.

As a plugin it adds commands and no request field, so it takes part in no picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenimage_core.hooks import hookimpl

if TYPE_CHECKING:
    import typer

NAME = "training"
HOOK_API = ">=1.0,<2"


@hookimpl
def commands(app: typer.Typer) -> None:
    from qwenimage_training.cli import add_train
    from qwenimage_training.data.check_command import register
    from qwenimage_training.engines import add_engines
    from qwenimage_training.validate_command import add_validate

    add_train(app)
    add_engines(app)
    register(app)
    add_validate(app)
