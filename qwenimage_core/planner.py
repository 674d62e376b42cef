"""From a request to a plan. Hooks are called here and nowhere else, in the order of the design:

condition -> latent_concat -> layout -> attention_mask -> residual_inject.

What plugins give is put together by rule: segments, adapters, rules and residuals add up; two replacements of the
same thing are an error that names both plugins. The order in which plugins were installed never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from qwenimage_core import schedule
from qwenimage_core.context import Context
from qwenimage_core.errors import ConflictError, PluginError, RequestError
from qwenimage_core.layout import NOISE, PROMPT, Grid, Layout, Segment
from qwenimage_core.plan import Branch, Contribution, Plan
from qwenimage_core.registry import LoadedPlugin
from qwenimage_core.values import (
    AttentionRules,
    BranchName,
    Condition,
    ImageSegment,
    Residual,
    Target,
    Tokens,
    TransformerOptions,
)

CORE = "core"
REPLACED = {
    "encode_prompt": "how prompts are read",
    "schedule": "the schedule",
    "target": "what is drawn",
    "options": "the transformer's options",
}
"""The parts of a Condition of which a run has one, in words."""


def make_plan(ctx: Context, plugins: Sequence[LoadedPlugin], seeds: Sequence[int]) -> Plan:
    """Plan one prompt. Raises RequestError, ConflictError or HookError; computes no tensor."""
    for plugin in plugins:
        plugin.call("check_request", ctx=ctx)
    given = Given.of(plugins, ctx)
    target = given.only("target") or Target()
    grid = _target_grid(ctx, target)
    ctx = replace(ctx, options=given.options(ctx.options), sigmas=_sigmas(ctx, given.only("schedule"), grid))
    start = None if ctx.request.input_image is None else _start(ctx, target)
    appended = _appended(ctx, plugins)
    branches: dict[BranchName, Branch] = {}
    for name in ("positive", "negative") if ctx.guided else ("positive",):
        branches[name] = _branch(replace(ctx, branch=name), name, given, appended, grid, plugins)
    return Plan(
        ctx=ctx,
        seeds=tuple(seeds),
        target=target,
        grid=grid,
        sigmas=ctx.sigmas,
        positive=branches["positive"],
        negative=branches.get("negative"),
        images=tuple(segment.tokens for _, segment in appended),
        start=start,
        options=ctx.options,
        adapters=tuple(a for _, c in given.conditions for a in c.adapters),
        plugins=tuple(plugins),
        contributions=tuple(_contributions(given, appended, branches.values())),
    )


@dataclass(frozen=True)
class Given:
    """What the `condition` hooks gave, with who gave it."""

    conditions: tuple[tuple[LoadedPlugin, Condition], ...]

    @classmethod
    def of(cls, plugins: Sequence[LoadedPlugin], ctx: Context) -> Given:
        return cls(
            tuple((p, c) for p in plugins if (c := _typed(p, "condition", Condition, ctx=ctx)) is not None)
        )

    def only(self, part: str, of: Callable[[Condition], Any] = lambda condition: condition) -> Any:
        """The one value of a part (of something in the condition) that replaces; ConflictError if two plugins give
        it."""
        values = [(p, v) for p, c in self.conditions if (v := getattr(of(c), part, None)) is not None]
        if len(values) > 1:
            (first, _), (second, _) = values[:2]
            raise ConflictError(
                f"{first.name} and {second.name} both replace {REPLACED.get(part, f'the {part}')}.",
                got=" and ".join(f"{p.name} {p.version}" for p, _ in values),
                expected="one plugin that does so in a run",
                mend=f"leave out the request fields of {first.name} or of {second.name}",
            )
        return values[0][1] if values else None

    def owner(self, part: str) -> str:
        """Name of the plugin that replaces a part, or the core."""
        return next((p.name for p, c in self.conditions if getattr(c, part) is not None), CORE)

    def options(self, model: TransformerOptions) -> TransformerOptions:
        """Each option on its own, so that two plugins may set different ones; where none does, the model's."""
        chosen = {f.name: self.only(f.name, lambda condition: condition.options) for f in fields(model)}
        return replace(model, **{name: value for name, value in chosen.items() if value is not None})


def _typed(plugin: LoadedPlugin, hook: str, kind: type[Any], **arguments: Any) -> Any:
    """Call a hook and hold it to its return type."""
    value = plugin.call(hook, **arguments)
    if value is not None and not isinstance(value, kind):
        raise PluginError(
            f"{plugin.name} {plugin.version} gives something else from {hook} than the hook asks for.",
            got=type(value).__name__,
            expected=f"{kind.__name__} or None",
        )
    return value


def _each(plugin: LoadedPlugin, hook: str, kind: type[Any], **arguments: Any) -> list[Any]:
    """Call a hook that gives a sequence of `kind`."""
    values = list(plugin.call(hook, **arguments) or ())
    for value in values:
        if not isinstance(value, kind):
            raise PluginError(
                f"{plugin.name} {plugin.version} gives something else from {hook} than the hook asks for.",
                got=type(value).__name__,
                expected=f"a sequence of {kind.__name__}",
            )
    return values


def _target_grid(ctx: Context, target: Target) -> Grid:
    multiple = ctx.backbone.size_multiple
    channels = ctx.backbone.image_channels
    if target.channels not in (None, channels):
        raise RequestError(
            f"The request makes pictures of {target.channels} channels; the loaded VAE has {channels}.",
            mend="load the VAE that belongs to this model (Qwen-Image-Layered has its own, for RGBA)",
        )
    return Grid(
        height=ctx.request.height // multiple, width=ctx.request.width // multiple, frames=target.frames
    )


def _sigmas(ctx: Context, replacement: Any, grid: Grid) -> tuple[float, ...]:
    request = ctx.request
    sigmas = (replacement or schedule.published)(
        steps=request.num_inference_steps,
        tokens=grid.height * grid.width,
        strength=request.denoising_strength,
        mu=request.exponential_shift_mu,
    )
    falling = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falling or not 0 < sigmas[0] <= 1 or sigmas[-1] != 0:
        raise RequestError(
            "The schedule is not one that can be walked.",
            got=sigmas,
            expected="levels falling from at most 1 to 0",
        )
    return tuple(sigmas)


def _start(ctx: Context, target: Target) -> Tokens:
    request = ctx.request
    if request.input_image.size != (request.width, request.height):
        raise RequestError(
            "input_image is not of the target's size.",
            got="{} x {}".format(*request.input_image.size),
            expected=f"{request.width} x {request.height}",
            mend="resize the picture, or give its size as width and height",
        )
    if target.frames != 1:
        raise RequestError(
            f"input_image starts one picture; this request makes {target.frames} layers at once."
        )
    return ctx.encode_picture(request.input_image)


def _appended(ctx: Context, plugins: Sequence[LoadedPlugin]) -> list[tuple[LoadedPlugin, ImageSegment]]:
    """Appended image segments by rank; plugins come in name order, so equal ranks do not depend on installation."""
    found = [(p, s) for p in plugins for s in _each(p, "latent_concat", ImageSegment, ctx=ctx)]
    return sorted(found, key=lambda pair: pair[1].rank)


def _branch(
    ctx: Context,
    name: BranchName,
    given: Given,
    appended: Sequence[tuple[LoadedPlugin, ImageSegment]],
    grid: Grid,
    plugins: Sequence[LoadedPlugin],
) -> Branch:
    encode = given.only("encode_prompt") or ctx.encode_prompt
    prompt = encode(ctx.prompt if name == "positive" else ctx.request.negative_prompt)
    text = [
        (p.name, s.name, t if isinstance(t, Tokens) else prompt)
        for p, c in given.conditions
        for s in c.text
        if (t := getattr(s, name)) is not None
    ]
    text.append((given.owner("encode_prompt"), PROMPT, prompt))
    zero = ctx.backbone.zero_cond_t if ctx.options.zero_cond_t is None else ctx.options.zero_cond_t
    layout = Layout(
        (
            *(Segment(name=n, owner=owner, kind="text", tokens=t.count) for owner, n, t in text),
            Segment(name=NOISE, owner=given.owner("target"), kind="image", tokens=grid.tokens, grid=grid),
            *(_image_segment(p, s, zero) for p, s in appended),
        ),
        rule=ctx.backbone.position_rule,
    )
    rules = [
        (p, rule)
        for p in plugins
        if (r := _typed(p, "attention_mask", AttentionRules, ctx=ctx, layout=layout)) is not None
        for rule in r.rules
    ]
    residuals = [
        (p, r) for p in plugins for r in _each(p, "residual_inject", Residual, ctx=ctx, layout=layout)
    ]
    for plugin, residual in residuals:
        _check_residual(plugin, residual, ctx, layout)
    return Branch(
        name=name,
        layout=layout,
        text=tuple(t for _, _, t in text),
        rules=tuple(rules),
        residuals=tuple((p, r) for p, r in residuals if name in r.branches),
    )


def _image_segment(plugin: LoadedPlugin, segment: ImageSegment, zero: bool) -> Segment:
    return Segment(
        name=segment.name,
        owner=plugin.name,
        kind="image",
        tokens=segment.tokens.count,
        grid=segment.tokens.grid,
        frame=segment.frame,
        onto=segment.onto,
        timestep=segment.timestep or ("zero" if zero else "step"),
    )


def _check_residual(plugin: LoadedPlugin, residual: Residual, ctx: Context, layout: Layout) -> None:
    what = f"Residual {residual.name!r} of {plugin.name}"
    if residual.segment not in layout or layout[residual.segment].kind != "image":
        raise RequestError(
            f"{what} is for a segment that is no image segment of this run.",
            got=residual.segment,
            expected=[s.name for s in layout.images],
        )
    for label, chosen, count in (
        ("blocks", residual.blocks, ctx.backbone.blocks),
        ("steps", residual.steps, len(ctx.sigmas) - 1),
    ):
        if chosen is not None and (not chosen or min(chosen) < 0 or max(chosen) >= count):
            raise RequestError(
                f"{what} acts on {label} that are not there.",
                got=sorted(chosen),
                expected=f"some of 0..{count - 1}",
            )


def _contributions(
    given: Given, appended: Sequence[tuple[LoadedPlugin, ImageSegment]], branches: Iterable[Branch]
) -> Iterable[Contribution]:
    for plugin, condition in given.conditions:
        parts = [f"adds text {', '.join(s.name for s in condition.text)}"] if condition.text else []
        parts += [f"attaches adapter {a.name}" for a in condition.adapters]
        parts += [
            f"decides {what}" for part, what in REPLACED.items() if getattr(condition, part) is not None
        ]
        yield Contribution(plugin=plugin.name, hook="condition", what="; ".join(parts) or "changes nothing")
    for plugin in dict.fromkeys(p for p, _ in appended):
        names = ", ".join(segment.name for p, segment in appended if p is plugin)
        yield Contribution(plugin=plugin.name, hook="latent_concat", what=f"appends {names}")
    for branch in branches:
        for plugin in dict.fromkeys(p for p, _ in branch.rules):
            count = sum(p is plugin for p, _ in branch.rules)
            what = f"limits who sees whom by {count} rule{'s' * (count > 1)}"
            yield Contribution(plugin=plugin.name, hook="attention_mask", what=what, branch=branch.name)
        for plugin, residual in branch.residuals:
            what = f"adds {residual.name} on {residual.segment}"
            yield Contribution(plugin=plugin.name, hook="residual_inject", what=what, branch=branch.name)
