"""Where the values of the options come from: mode < recipe < config file < command line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from qwenimage_core.errors import RequestError
from qwenimage_training.absent import ABSENT
from qwenimage_training.arguments import TrainingArguments

if TYPE_CHECKING:
    from qwenimage_core.values import Recipe

Mode = Literal["full", "lora"]

TARGETS = (
    *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
    *("img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1"),
)
"""The twelve layers of a block that the published LoRAs change."""

_SHARED = {"max_pixels": 1048576, "use_gradient_checkpointing": True, "find_unused_parameters": True}
MODES: Mapping[str, Mapping[str, Any]] = {
    "full": {**_SHARED, "learning_rate": 1e-5, "num_epochs": 2, "trainable_models": "dit"},
    "lora": {
        **_SHARED,
        "learning_rate": 1e-4,
        "num_epochs": 5,
        "lora_base_model": "dit",
        "lora_target_modules": ",".join(TARGETS),
        "lora_rank": 32,
    },
}
MODELS = ("model", "model_paths", "model_id_with_origin_paths")
SIZE = ("height", "width")


def merged(
    mode: str | None, recipe: Recipe | None, config: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of all sources, later ones over earlier ones. RequestError for a mode that is none, or that the
    recipe was not published with."""
    if mode is not None and mode not in MODES:
        raise RequestError("--mode is none of training.", got=mode, expected=" or ".join(get_args(Mode)))
    if recipe is not None and mode is None:
        raise RequestError("A recipe is trained in a mode.", mend="add --mode full or --mode lora")
    values: dict[str, Any] = dict(MODES[mode]) if mode else {}
    if recipe is not None:
        forms = {form.mode: form for form in recipe.training}
        if mode not in forms:
            raise RequestError(
                f"The recipe {recipe.name} has no published training of mode {mode}.",
                expected=" or ".join(forms) or "none: this recipe is not trained",
            )
        values |= {name: _text(value) for name, value in forms[mode].arguments.items()}
        values.update(_models(recipe))
    for layer in (config, given):
        if any(layer.get(name) is not None for name in MODELS):
            values = {k: v for k, v in values.items() if k not in MODELS}
        values |= layer
    if all(values.get(name) is not None for name in SIZE) and "max_pixels" not in {*config, *given}:
        values.pop("max_pixels", None)  # the mode's; a fixed size takes its place
    return values


def _models(recipe: Recipe) -> dict[str, Any]:
    paths = [f"{m['model_id']}:{p}" for m in recipe.models for p in _patterns(m["origin_file_pattern"])]
    found: dict[str, Any] = {"model_id_with_origin_paths": ",".join(paths)}
    if recipe.options.activation is not None:
        found["activation"] = recipe.options.activation
    return found


def _text(value: Any) -> Any:
    """A file on a hub, in the form that options have for it."""
    if isinstance(value, Mapping) and "model_id" in value:
        return f"{value['model_id']}:{value['origin_file_pattern']}"
    return value


def _patterns(pattern: Any) -> list[str]:
    return [pattern] if isinstance(pattern, str) else list(pattern)


def read_config(path: str | Path) -> dict[str, Any]:
    """Options from a YAML or TOML file."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"The config file {file} cannot be read.", got=error.strerror) from error
    try:
        found = _parse(file, text)
    except ValueError as error:
        raise RequestError(f"The config file {file} is broken.", got=str(error)[:300]) from error
    if not isinstance(found, dict):
        raise RequestError(
            f"The config file {file} holds no options.",
            got=type(found).__name__,
            expected="name: value lines",
        )
    return {str(name): value for name, value in found.items()}


def _parse(file: Path, text: str) -> Any:
    if file.suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if file.suffix in (".yaml", ".yml"):
        import yaml  # type: ignore[import-untyped]

        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"{file.suffix or 'no ending'} is neither .yaml nor .toml")


def validated(values: Mapping[str, Any]) -> TrainingArguments:
    """The arguments; RequestError with a line for each fault."""
    known = TrainingArguments.model_fields
    for name in values:
        if name in ABSENT:
            raise RequestError(f"The published option `{name}` does not exist here.", mend=ABSENT[name])
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise RequestError(
                f"There is no training option `{name}`.",
                mend=f"did you mean `{near[0]}`?" if near else "see `qwenimage train --help`",
            )
    try:
        return TrainingArguments(**values)
    except ValidationError as error:
        lines = [_line(fault) for fault in error.errors(include_url=False)]
        raise RequestError(
            "\n  ".join(lines) if len(lines) == 1 else "\n  ".join(["Options:", *lines])
        ) from error


def _line(fault: Any) -> str:
    said = str(fault.get("ctx", {}).get("error") or fault["msg"])
    if not fault["loc"]:
        return said
    return f"--{'.'.join(map(str, fault['loc']))}: {said} (got {str(fault['input'])[:80]!r})"
