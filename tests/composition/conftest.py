"""Pipelines with all seven plugins on tiny models, each opened once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import qwenimage_blockwise_controlnet
import qwenimage_edit
import qwenimage_eligen
import qwenimage_i2l
import qwenimage_in_context_control
import qwenimage_layered
import qwenimage_lightning
from qwenimage_core import QwenImagePipeline

from .models import Family, open_pipe, write_models

PLUGINS: tuple[Any, ...] = (
    qwenimage_blockwise_controlnet,
    qwenimage_edit,
    qwenimage_eligen,
    qwenimage_i2l,
    qwenimage_in_context_control,
    qwenimage_layered,
    qwenimage_lightning,
)

Base = Callable[[Family], Path]
Pipe = Callable[[Family], QwenImagePipeline]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The folder of a family's models."""
    models = tmp_path_factory.mktemp("composition")
    return cache(lambda family: write_models(models, family))


@pytest.fixture(scope="session")
def pipe(base: Base) -> Pipe:
    """Tests leave it as they found it."""
    return cache(lambda family: open_pipe(base(family), PLUGINS))


@pytest.fixture(scope="session")
def pipe_in_reverse(base: Base) -> Pipe:
    """The same with its plugins given in the opposite order."""
    return cache(lambda family: open_pipe(base(family), PLUGINS[::-1]))
