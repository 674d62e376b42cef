"""Write docs/composition.md from the table that tests/composition holds true: `python docs/make_composition.py`. A test
holds the page to it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("composition.md")

HEAD = """# Composition

Made from `tests/composition/pairs.py` by `python docs/make_composition.py`; do not edit.

Plugins know nothing of each other. A request that gives fields of several makes all of them take part in one
plan, and what they give is put together by four rules, whichever plugin it comes from:

- **Adds.** Text segments, appended image segments, adapters and residuals: all take part. Residuals of a
  block see the same tokens and their sum is added, so their order does not matter. The order of image
  segments is declared by rank (context, references, the input of layers), never by the order of installation.
- **Intersects.** Attention rules: two tokens see each other if every rule allows it. Without a rule there is
  no mask. A rule names segments and an area, so it holds in each branch of guidance by itself, on references
  of any size.
- **Replaces.** How prompts are read, the schedule, what is drawn (layers, channels), each of the
  transformer's options: one plugin at most. The replaced segment is then that plugin's own, in `explain()`
  and in errors.
- **Refused.** Two plugins that replace the same thing, and what one cannot do beside what another draws. The
  error comes before anything is computed, names both plugins, says why, and how to mend it.

A plugin whose strength is 0 is absent. One whose fields are not given is absent however many are installed.
What a run attaches is detached after it, bit for bit.

## Every pair

*As the peer*: final latents within 1e-4 of DiffSynth-Studio's, run live on equal weights, and equal pictures.
(It makes the LoRA of i2l in a run of its own; the comparison gives it the file.) Of each pair it is tested
besides that both act, that their order changes nothing, that a batch draws what single runs draw, and that
nothing stays behind. On the diagonal: what several of one kind do.
"""

REQUEST = """
pipe.explain(
    "put the cup on the table",
    height=64,
    width=96,
    seed=1,
    edit_image=[cup, table],
    edit_image_auto_resize=False,
    eligen_entity_prompts=["a cup", "a table"],
    eligen_entity_masks=[upper, lower],
    blockwise_controlnet_inputs=[ControlNetInput(image=edges, scale=0.8, end=0.5)],
    lightning="Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
)
""".strip()


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "\n".join(_matrix()),
        "## Where a peer draws it too\n\nThe cases of `tests/parity` that compare a pair, alone or among others:",
        "\n".join(_peers()),
        "## One plan of four plugins\n\nEditing, entities, a ControlNet and few steps, on a tiny random model:",
        f"```text\n{REQUEST}\n```",
        "Nothing is loaded or run for it:",
        f"```text\n{_plan()}\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table() -> Any:
    """The module with the pairs, which the tests read too."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.composition import pairs

    return pairs


def _matrix() -> Iterator[str]:
    table = _table()
    cells = {frozenset(pair.plugins): _cell(pair) for pair in table.PAIRS}
    yield "| | " + " | ".join(f"**{name}**" for name in table.PLUGINS) + " |"
    yield "|---" * (len(table.PLUGINS) + 1) + "|"
    for row in table.PLUGINS:
        shown = [
            table.SEVERAL[row].words if row == column else cells[frozenset((row, column))]
            for column in table.PLUGINS
        ]
        yield f"| **{row}** | " + " | ".join(shown) + " |"


def _cell(pair: Any) -> str:
    works = "as the peer" if pair.peer else "works"
    limit = f", {pair.limit}" if pair.limit else ""
    return works + limit + (f"; refused: {pair.refusal.reason}" if pair.refusal else "")


def _peers() -> Iterator[str]:
    yield "| pair | test | case |"
    yield "|---|---|---|"
    for pair in _table().PAIRS:
        if pair.peer:
            file, case = pair.peer
            yield f"| {pair.first}, {pair.second} | [{file}](../tests/parity/{file}) | {case} |"


def _plan() -> str:
    """What `explain()` says of the request."""
    _table()
    from PIL import Image

    from qwenimage_blockwise_controlnet import ControlNetInput
    from tests.composition.models import CONTROLNETS, open_pipe, write_models

    upper = Image.new("L", (96, 64))
    upper.paste(255, (32, 0, 80, 32))
    names = {
        "cup": Image.new("RGB", (64, 64)),
        "table": Image.new("RGB", (96, 48)),
        "edges": Image.new("RGB", (96, 64)),
        "upper": upper,
        "lower": upper.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        "ControlNetInput": ControlNetInput,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = write_models(Path(folder), "edit-2511")
        with chdir(base):
            return str(eval(REQUEST, {"pipe": open_pipe(base, more=CONTROLNETS[:1]), **names}))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
