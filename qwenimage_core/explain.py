"""A plan in words: what will run, who contributed what, where it lives and what it needs. Computes no tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenimage_core.layout import Segment
from qwenimage_core.plan import Branch, Plan
from qwenimage_core.values import Apart, Within

if TYPE_CHECKING:
    from qwenimage_core.loading.components import Component

MIB = 2**20


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
            lines.append(f"  with {plugin['name']} {plugin['version']}")
        for name, branch in facts["branches"].items():
            lines.append(f"\n{name} branch, {branch['tokens']} tokens")
            lines += [_segment_line(s) for s in branch["segments"]]
            lines.append(f"  attention: {branch['attention']}")
            lines += [f"  residual {r}" for r in branch["residuals"]]
        if facts["contributions"]:
            lines.append("\ncontributions")
            lines += [f"  {c['plugin']:<22} {c['hook']:<16} {c['what']}" for c in facts["contributions"]]
        lines.append(f"\nschedule: {_schedule(facts['sigmas'])}")
        lines.append(f"adapters: {', '.join(facts['adapters']) or 'none'}")
        lines.append("components")
        for c in facts["components"]:
            lines.append(
                f"  {c['name']:<22} {c['bytes'] / MIB:10.1f} MiB  {c['dtype']:<9} {c['device']:<6} {c['state']}"
            )
        lines.append(f"expected peak memory: {facts['expected_peak_bytes'] / MIB:.0f} MiB")
        return "\n".join(lines)


def explain(
    plans: Sequence[Plan], components: Mapping[str, Sequence[Component]], *, loras: Sequence[str]
) -> Explanation:
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
            "branches": {b.name: _branch(b) for b in plan.branches},
            "contributions": [vars(c) | {} for c in plan.contributions],
            "sigmas": list(plan.sigmas),
            "adapters": [*loras, *(a.name for a in plan.adapters)],
            "components": [
                {
                    "name": name + (f"/{i}" if len(several) > 1 else ""),
                    "bytes": c.bytes,
                    "dtype": str(c.dtype).removeprefix("torch."),
                    "device": str(c.device),
                    "state": "loaded" if c.loaded else "on disk",
                }
                for name, several in components.items()
                for i, c in enumerate(several)
            ],
            "expected_peak_bytes": expected_peak(plans, components),
        }
    )


def expected_peak(plans: Sequence[Plan], components: Mapping[str, Sequence[Component]]) -> int:
    """All weights, which stay resident, and the largest working set of any stage; an estimate within about a third.

    A transformer block holds some 20 token-wide tensors (streams, projections, the feed-forward's fourfold width);
    the last stage of the decoder holds some six pictures of its width in feature maps.
    """
    weights = sum(c.bytes for several in components.values() for c in several)
    working = 0
    for plan in plans:
        tokens = max(b.layout.tokens for b in plan.branches) * len(plan.seeds)
        block = 20 * tokens * plan.backbone.token_width * components["transformer"][0].itemsize
        pixels = plan.request.height * plan.request.width
        decode = 6 * pixels * plan.backbone.vae_width * components["vae"][0].itemsize
        working = max(working, block, decode)
    return weights + working


def _branch(branch: Branch) -> dict[str, Any]:
    return {
        "tokens": branch.layout.tokens,
        "segments": [_segment(s) for s in branch.layout.segments],
        "attention": _attention(branch),
        "residuals": [f"{r.name} of {p.name} on {r.segment}" for p, r in branch.residuals],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "name": segment.name,
        "owner": segment.owner,
        "kind": segment.kind,
        "tokens": segment.tokens,
        "grid": str(segment.grid) if segment.grid else None,
        "timestep": segment.timestep,
    }


def _attention(branch: Branch) -> str:
    if not branch.rules:
        return "every token sees every token, no mask"
    apart = sum(isinstance(r, Apart) for _, r in branch.rules)
    within = [r for _, r in branch.rules if isinstance(r, Within)]
    areas = ", ".join(f"{r.text} in {float(r.where.float().mean()):.0%} of {r.image}" for r in within)
    return "; ".join(part for part in (f"{apart} pairs apart" if apart else "", areas) if part)


def _headline(facts: Mapping[str, Any]) -> str:
    guidance = "no guidance" if facts["cfg_scale"] == 1 else f"guidance {facts['cfg_scale']:g}"
    layers = f" of {facts['frames']} layers" if facts["frames"] > 1 else ""
    return (
        f"{facts['backbone']}: {facts['pictures']} picture{'s' * (facts['pictures'] != 1)}{layers}, "
        f"{facts['width']} x {facts['height']}, {facts['steps']} steps, {guidance}"
    )


def _segment_line(segment: Mapping[str, Any]) -> str:
    grid = f"grid {segment['grid']}" if segment["grid"] else ""
    zero = ", at time zero" if segment["timestep"] == "zero" else ""
    return f"  {segment['name']:<22} {segment['owner']:<14} {segment['kind']:<6} {segment['tokens']:>6}  {grid}{zero}"


def _schedule(sigmas: Sequence[float]) -> str:
    shown = [f"{s:.4f}" for s in sigmas]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
