"""A plan in words: what will run, who contributed what, where it lives and what it needs. Computes no tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from qwenimage_core.layout import Segment
from qwenimage_core.memory.keeper import Keeper
from qwenimage_core.memory.report import component_lines, memory_facts, table
from qwenimage_core.plan import Branch, Plan
from qwenimage_core.values import Apart, Within


@dataclass(frozen=True)
class Explanation:
    """`str()` for people, `as_dict()` for `--json`."""

    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return self.facts

    def __str__(self) -> str:
        facts = self.facts
        lines = [_headline(facts)]
        for plugin in facts["plugins"]:
            lines.append(f"  with {plugin['name']} {plugin['version']}: {_share(plugin['name'], facts)}")
        for name, branch in facts["branches"].items():
            lines.append(f"\n{name} branch, {branch['tokens']} tokens")
            lines += _segment_lines(branch["segments"])
            first, *others = branch["attention"]
            lines += [f"  attention: {first}", *(f"             {line}" for line in others)]
            lines += [f"  residual: {r}" for r in branch["residuals"]]
        lines.append(f"\nschedule: {_schedule(facts['sigmas'])}")
        lines.append(f"adapters: {', '.join(facts['adapters']) or 'none'}")
        lines.append("components")
        lines += [*component_lines(facts["components"]), *table(facts["memory"])]
        return "\n".join(lines)


def explain(plans: Sequence[Plan], keeper: Keeper, *, loras: Sequence[str]) -> Explanation:
    """Explain the plans of one request; they differ in their prompts alone, so the first one's layouts are shown."""
    plan, request = plans[0], plans[0].request
    return Explanation(
        {
            "backbone": plan.backbone.name,
            "prompts": [p.prompt for p in plans],
            "pictures": sum(len(p.seeds) for p in plans),
            "seeds": [list(p.seeds) for p in plans],
            "width": request.width,
            "height": request.height,
            "frames": plan.target.frames,
            "steps": plan.steps,
            "cfg_scale": request.cfg_scale,
            "plugins": [{"name": p.name, "version": p.version} for p in plan.plugins],
            "branches": {b.name: _branch(b, plan) for b in plan.branches},
            "contributions": [vars(c) | {} for c in plan.contributions],
            "sigmas": list(plan.sigmas),
            "adapters": [*loras, *(a.name for a in plan.adapters)],
            **memory_facts(keeper, plans),
        }
    )


def _branch(branch: Branch, plan: Plan) -> dict[str, Any]:
    return {
        "tokens": branch.layout.tokens,
        "segments": [_segment(s) for s in branch.layout.segments],
        "attention": _attention(branch),
        "residuals": [
            f"{r.name} of {p.name} on {r.segment}, "
            f"{_where('block', r.blocks, plan.backbone.blocks)}, {_where('step', r.steps, plan.steps)}"
            for p, r in branch.residuals
        ],
    }


def _where(what: str, chosen: Collection[int] | None, count: int) -> str:
    """Which blocks or steps, counted from 1: "every block", "steps 1-3, 5 of 8"."""
    numbers = sorted({n + 1 for n in chosen or ()})
    if len(numbers) in (0, count):
        return f"every {what}"
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    shown = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{what}{'s' * (len(numbers) > 1)} {shown} of {count}"


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "name": segment.name,
        "owner": segment.owner,
        "kind": segment.kind,
        "tokens": segment.tokens,
        "grid": str(segment.grid) if segment.grid else None,
        "timestep": segment.timestep,
    }


def _attention(branch: Branch) -> list[str]:
    """Who is apart, then a line for each text segment that has an area."""
    if not branch.rules:
        return ["every token sees every token, no mask"]
    apart = [r for _, r in branch.rules if isinstance(r, Apart)]
    among = dict.fromkeys(name for rule in apart for name in (rule.a, rule.b))
    areas: dict[str, list[str]] = {}
    for _, rule in branch.rules:
        if isinstance(rule, Within):
            areas.setdefault(rule.text, []).append(f"{float(rule.where.float().mean()):.0%} of {rule.image}")
    lines = [f"{len(apart)} pair{'s' * (len(apart) > 1)} apart among {', '.join(among)}"] if apart else []
    return lines + [f"{name} in {', '.join(parts)}" for name, parts in areas.items()]


def _share(plugin: str, facts: Mapping[str, Any]) -> str:
    """What one plugin gives to the run; what it gives to every branch alike is said once."""
    said: dict[str, list[str | None]] = {}
    for given in facts["contributions"]:
        if given["plugin"] == plugin:
            said.setdefault(given["what"], []).append(given["branch"])
    everywhere = ([None], list(facts["branches"]))
    parts = [what if b in everywhere else f"{what} ({b[0]} branch)" for what, b in said.items()]
    return "; ".join(parts) or "does nothing"


def _headline(facts: Mapping[str, Any]) -> str:
    guidance = "no guidance" if facts["cfg_scale"] == 1 else f"guidance {facts['cfg_scale']:g}"
    layers = f" of {facts['frames']} layers" if facts["frames"] > 1 else ""
    return (
        f"{facts['backbone']}: {facts['pictures']} picture{'s' * (facts['pictures'] != 1)}{layers}, "
        f"{facts['width']} x {facts['height']}, {facts['steps']} step{'s' * (facts['steps'] != 1)}, {guidance}"
    )


def _segment_lines(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    owner = max(14, *(len(s["owner"]) for s in segments))
    for s in segments:
        grid = f"  grid {s['grid']}" if s["grid"] else ""
        zero = ", at time zero" if s["timestep"] == "zero" else ""
        yield f"  {s['name']:<22} {s['owner']:<{owner}} {s['kind']:<6} {s['tokens']:>6}{grid}{zero}"


def _schedule(sigmas: Sequence[float]) -> str:
    shown = [f"{s:.4f}" for s in sigmas]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
