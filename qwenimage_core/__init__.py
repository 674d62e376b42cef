"""qwenimage: a minimal denoising core for the Qwen-Image family, and plugins that compose.

    from qwenimage_core import QwenImagePipeline

    pipe = QwenImagePipeline.from_pretrained("tiny")
    pipe("a red circle on a blue background").save("circle.png")

Everything public is here; a name is imported when it is first used, so that `import qwenimage_core` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwenimage_core.version import __version__

if TYPE_CHECKING:
    from qwenimage_core.adapters.lora import Adapter
    from qwenimage_core.context import Context
    from qwenimage_core.errors import (
        AdapterError,
        ConflictError,
        DenoiseError,
        HookError,
        LoadError,
        MemoryLimitError,
        PluginError,
        QwenImageError,
        QwenImageWarning,
        RequestError,
    )
    from qwenimage_core.hooks import HOOK_API, hookimpl
    from qwenimage_core.layout import Grid, Layout, Segment
    from qwenimage_core.loading.config import ModelConfig
    from qwenimage_core.loading.recognise import ComponentSpec
    from qwenimage_core.models.compiled import compile_blocks
    from qwenimage_core.pipeline import Generation, QwenImagePipeline
    from qwenimage_core.plan import Plan
    from qwenimage_core.request import FieldsModel, Picture
    from qwenimage_core.values import (
        Apart,
        AttentionRules,
        Condition,
        ImageSegment,
        Recipe,
        Residual,
        Target,
        TextSegment,
        Tokens,
        TrainingForm,
        TransformerOptions,
        Within,
    )

_HOMES = {
    "adapters.lora": ("Adapter",),
    "context": ("Context",),
    "errors": (
        "AdapterError",
        "ConflictError",
        "DenoiseError",
        "HookError",
        "LoadError",
        "MemoryLimitError",
        "PluginError",
        "QwenImageError",
        "QwenImageWarning",
        "RequestError",
    ),
    "hooks": ("HOOK_API", "hookimpl"),
    "layout": ("Grid", "Layout", "Segment"),
    "loading.config": ("ModelConfig",),
    "loading.recognise": ("ComponentSpec",),
    "models.compiled": ("compile_blocks",),
    "pipeline": ("Generation", "QwenImagePipeline"),
    "plan": ("Plan",),
    "request": ("FieldsModel", "Picture"),
    "values": (
        "Apart",
        "AttentionRules",
        "Condition",
        "ImageSegment",
        "Recipe",
        "Residual",
        "Target",
        "TextSegment",
        "Tokens",
        "TrainingForm",
        "TransformerOptions",
        "Within",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "HOOK_API",
    "Adapter",
    "AdapterError",
    "Apart",
    "AttentionRules",
    "ComponentSpec",
    "Condition",
    "ConflictError",
    "Context",
    "DenoiseError",
    "FieldsModel",
    "Generation",
    "Grid",
    "HookError",
    "ImageSegment",
    "Layout",
    "LoadError",
    "MemoryLimitError",
    "ModelConfig",
    "Picture",
    "Plan",
    "PluginError",
    "QwenImageError",
    "QwenImagePipeline",
    "QwenImageWarning",
    "Recipe",
    "RequestError",
    "Residual",
    "Segment",
    "Target",
    "TextSegment",
    "Tokens",
    "TrainingForm",
    "TransformerOptions",
    "Within",
    "__version__",
    "compile_blocks",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qwenimage_core' has no attribute {name!r}")
    value = getattr(import_module(f"qwenimage_core.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
