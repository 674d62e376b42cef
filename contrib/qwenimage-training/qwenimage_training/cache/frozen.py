"""A planned and encoded sample as tensors and JSON, and back.

N noise tokens, C packed channels, h and w latent pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from qwenimage_core.context import Context
from qwenimage_core.layout import Grid, Layout, Segment
from qwenimage_core.plan import Branch, Plan
from qwenimage_core.request import CoreRequest
from qwenimage_core.values import Apart, Residual, Target, Tokens, TransformerOptions, Within
from qwenimage_training.cache.encoders import RecordingEncoders, ReplayingEncoders
from qwenimage_training.errors import TrainingError
from qwenimage_training.sample import Sample

if TYPE_CHECKING:
    from collections.abc import Hashable

    from qwenimage_core import QwenImagePipeline
    from qwenimage_core.registry import LoadedPlugin
    from qwenimage_training.encoded import Encoded

PICTURE = "$picture"


@dataclass(frozen=True)
class Frozen:
    """What a file of the cache holds."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


# --- to tensors and JSON ------------------------------------------------------------------------------------------


def freeze(encoded: Encoded, zero: Plan, given: Mapping[str, Any]) -> Frozen:
    """`zero` is the plan of the same request for a transformer with `zero_cond_t`, the sample's own is for one without:
    which of the two counts is seen when the transformer is there. `given` are the fields of the request."""
    plan = encoded.sample.plan
    branch = plan.positive
    tensors = {"target": encoded.target_1NC}
    tensors |= {f"text/{i}": tokens.value for i, tokens in enumerate(branch.text)}
    tensors |= {f"image/{i}": tokens.value for i, tokens in enumerate(plan.images)}
    rules = []
    for i, (plugin, rule) in enumerate(branch.rules):
        rules.append({"plugin": plugin.name, **_rule_facts(rule)})
        if isinstance(rule, Within):
            tensors[f"rule/{i}"] = rule.where
    facts = {
        "prompt": plan.prompt,
        "seeds": list(plan.seeds),
        "sigmas": list(plan.sigmas),
        "target": asdict(plan.target),
        "grid": asdict(plan.grid),
        "layouts": [[_bare(s) for s in p.positive.layout.segments] for p in (plan, zero)],
        "options": _options(plan.options, zero.options),
        "rules": rules,
        "residuals": [{"plugin": plugin.name, "name": r.name} for plugin, r in branch.residuals],
    }
    if not branch.residuals:
        light = {name: value for name, value in given.items() if name in CoreRequest.model_fields}
        return Frozen(tensors, {**facts, "request": light})
    pictures: list[Image.Image] = []
    facts["request"] = _without_pictures(given, pictures)
    tensors |= {f"picture/{i}": _as_png(picture) for i, picture in enumerate(pictures)}
    encoders = plan.ctx.encoders
    assert isinstance(encoders, RecordingEncoders)
    facts["counts"] = {key: tokens.count for key, tokens in encoders.said.items()}
    tensors |= {f"made/{key}": value for key, value in encoders.made.items()}
    tensors |= {f"said/{key}": value for key, value in encoders.spoken().items()}
    places: dict[tuple[int, int], str] = {}
    facts["same"] = {
        name: first
        for name, tensor in tensors.items()
        if (first := places.setdefault((tensor.data_ptr(), tensor.numel()), name)) != name
    }
    return Frozen({name: t for name, t in tensors.items() if name not in facts["same"]}, facts)


def _bare(segment: Segment) -> dict[str, Any]:
    return {name: value for name, value in asdict(segment).items() if value is not None}


def _options(one: TransformerOptions, other: TransformerOptions) -> dict[str, Any]:
    """What the plugins chose: all that does not follow the option in which the two plans differ."""
    chosen = {f.name: getattr(one, f.name) for f in fields(one)}
    return {k: v for k, v in chosen.items() if v is not None and v == getattr(other, k)}


def _rule_facts(rule: Apart | Within) -> dict[str, str]:
    if isinstance(rule, Apart):
        return {"kind": "apart", "a": rule.a, "b": rule.b}
    return {"kind": "within", "text": rule.text, "image": rule.image}


def _without_pictures(value: Any, pictures: list[Image.Image]) -> Any:
    if isinstance(value, Image.Image):
        pictures.append(value)
        return {PICTURE: len(pictures) - 1}
    if isinstance(value, Mapping):
        return {name: _without_pictures(inner, pictures) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_pictures(inner, pictures) for inner in value]
    return value


def _as_png(picture: Image.Image) -> torch.Tensor:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


# --- and back -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachedTarget:
    """Stands for a target that was encoded: `encode_picture` of the sample's encoders knows it."""

    tokens: Tokens


def thaw(frozen: Frozen, pipe: QwenImagePipeline, name: str, index: int, epoch: int, key: Hashable) -> Sample:
    """The sample, with every tensor there already. The options are the transformer's and the run's, but for those that
    plugins chose."""
    facts = frozen.facts
    same = {name: frozen.tensors[first] for name, first in facts.get("same", {}).items()}
    tensors = {**frozen.tensors, **same}
    options = replace(pipe.options, **facts["options"])
    zero = pipe.backbone.zero_cond_t if options.zero_cond_t is None else options.zero_cond_t
    layout = Layout(tuple(map(_segment, facts["layouts"][zero])), rule=pipe.backbone.position_rule)
    given = _with_pictures(facts["request"], tensors)
    parts = {part: _part(tensors, part) for part in ("made", "said")}
    ctx = Context(
        request=pipe.registry.request(**{**pipe.registry.defaults(given), **given}),
        prompt=facts["prompt"],
        backbone=pipe.backbone,
        encoders=_Encoders(pipe.backbone, parts["made"], parts["said"], facts.get("counts", {}), name),
        components=pipe.components,
        options=options,
        sigmas=tuple(facts["sigmas"]),
    )
    texts = tuple(_tokens(tensors[f"text/{i}"]) for i in range(len(layout.text)))
    branch = Branch(
        name="positive",
        layout=layout,
        text=texts,
        rules=tuple(
            (_plugin(pipe, rule["plugin"], needed=False), _rule(rule, tensors.get(f"rule/{i}")))
            for i, rule in enumerate(facts["rules"])
        ),
        residuals=_residuals(facts["residuals"], replace(ctx, branch="positive"), layout, pipe, name),
    )
    plan = Plan(
        ctx=ctx,
        seeds=tuple(facts["seeds"]),
        target=Target(**facts["target"]),
        grid=Grid(**facts["grid"]),
        sigmas=ctx.sigmas,
        positive=branch,
        negative=None,
        images=tuple(_tokens(tensors[f"image/{i}"]) for i in range(len(layout.images) - 1)),
        start=None,
        options=options,
        adapters=(),
        plugins=(),
        contributions=(),
    )
    target: Any = (CachedTarget(_tokens(tensors["target"])),)
    return Sample(plan, target, name, index, epoch, key)


class _Encoders(ReplayingEncoders):
    def encode_picture(self, picture: Any) -> Tokens:
        return picture.tokens if isinstance(picture, CachedTarget) else super().encode_picture(picture)


def _tokens(value: torch.Tensor) -> Tokens:
    return Tokens(value.shape[1], lambda: value)


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{part}/"): v for k, v in tensors.items() if k.startswith(f"{part}/")}


def _segment(facts: Mapping[str, Any]) -> Segment:
    grid = facts.get("grid")
    return Segment(**{**facts, "grid": None if grid is None else Grid(**grid)})


def _rule(facts: Mapping[str, str], where: torch.Tensor | None) -> Apart | Within:
    if facts["kind"] == "apart":
        return Apart(facts["a"], facts["b"])
    assert where is not None
    return Within(facts["text"], facts["image"], where)


def _with_pictures(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, Mapping):
        if PICTURE in value:
            png = tensors[f"picture/{value[PICTURE]}"].cpu().numpy().tobytes()
            picture = Image.open(io.BytesIO(png), formats=("PNG",))
            picture.load()
            return picture
        return {name: _with_pictures(inner, tensors) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_pictures(inner, tensors) for inner in value]
    return value


def _residuals(
    facts: list[dict[str, str]], ctx: Context, layout: Layout, pipe: QwenImagePipeline, name: str
) -> tuple[tuple[LoadedPlugin, Residual], ...]:
    """What the plugins that gave residuals give now, for the same request."""
    found: list[tuple[LoadedPlugin, Residual]] = []
    for plugin_name in dict.fromkeys(f["plugin"] for f in facts):
        plugin = _plugin(pipe, plugin_name, needed=True)
        found += [(plugin, r) for r in plugin.call("residual_inject", name, ctx=ctx, layout=layout) or ()]
    names = [{"plugin": plugin.name, "name": residual.name} for plugin, residual in found]
    if names != facts:
        raise TrainingError(
            f"Plugins give other residuals than when the cache was made ({name}).",
            got=", ".join(f["name"] for f in names) or "none",
            expected=", ".join(f["name"] for f in facts),
            mend="use the versions that the manifest names, or make the cache again with --overwrite_cache",
        )
    return tuple(found)


def _plugin(pipe: QwenImagePipeline, name: str, *, needed: bool) -> Any:
    for plugin in pipe.registry.loaded:
        if plugin.name == name:
            return plugin
    if needed:
        raise TrainingError(
            f"The cache has residuals of the plugin {name}, which is not here.",
            mend="install it, or give its file with --plugin",
        )
    return None  # its rules are data
