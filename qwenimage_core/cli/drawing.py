"""Drawing the plans of a session and writing the pictures: alone, or together with the other processes of torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenimage_core.cli.output import Targets, save
from qwenimage_core.cli.session import Session

if TYPE_CHECKING:
    from qwenimage_core.parallel.group import Group
    from qwenimage_core.plan import Plan

Written = dict[str, Any]
"""path, seed and prompt of a picture."""


def draw(
    session: Session, plans: Sequence[Plan], targets: Targets, tell: Callable[[Written], None]
) -> list[Written]:
    """Draw and write all pictures; each is told as soon as it is there, by the process that speaks for all."""
    if session.pipe.group is not None:
        return _draw_together(session, session.pipe.group, plans, targets, tell)
    written: list[Written] = []
    for plan in plans:
        for seed, number, image in _pictures(session, plan):
            path = targets.path(len(written) + 1, seed)
            written.append(_write(session, plan, seed, number, image, path, targets))
            tell(written[-1])
    return written


def _draw_together(
    session: Session,
    group: Group,
    plans: Sequence[Plan],
    targets: Targets,
    tell: Callable[[Written], None],
) -> list[Written]:
    """Draw with the other processes; when all are done, name the pictures as one process would, and write them. Where
    all have drawn the same, the first writes."""
    drawn = [(plan, *picture) for plan in session.pipe.share(plans) for picture in _pictures(session, plan)]
    if group.parallel != "data" and group.rank > 0:
        drawn = []
    seeds = group.every([seed for _, seed, _, _ in drawn])
    first = sum(map(len, seeds[: group.rank]))
    paths = group.agree([str(path) for path in targets.paths([seed for own in seeds for seed in own])])
    own_paths = map(Path, paths[first : first + len(drawn)])
    own = [
        _write(session, plan, seed, number, image, path, targets)
        for (plan, seed, number, image), path in zip(drawn, own_paths, strict=True)
    ]
    written = [each for some in group.every(own) for each in some]
    for each in written if group.rank == 0 else ():
        tell(each)
    return written


def _pictures(session: Session, plan: Plan) -> list[tuple[int, int, Any]]:
    """(seed, number among the pictures of that seed, picture), in order."""
    found = []
    for seed, images in zip(plan.seeds, session.pipe.run(plan), strict=True):
        several = images if isinstance(images, list) else [images]
        found += [(seed, number, image) for number, image in enumerate(several)]
    return found


def _write(
    session: Session, plan: Plan, seed: int, number: int, image: Any, path: Path, targets: Targets
) -> Written:
    save(image, path, session.describe(plan, seed, number), overwrite=targets.overwrite)
    return {"path": str(path), "seed": seed, "prompt": plan.prompt}
