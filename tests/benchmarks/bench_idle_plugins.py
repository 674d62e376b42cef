"""What plugins cost that are installed and not used: seven of them, each with every conditioning hook.

They are installed as far as the registry can tell: distributions with an entry point on the import path.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from timing import compare, finish, machine, report

from qwenimage_core import QwenImagePipeline, discovery
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

PLUGINS = 7
RATIO = 1.01
ROUNDS = 41
SIZE = {"height": 256, "width": 256, "num_inference_steps": 20}
REQUEST = {**SIZE, "seed": 1, "progress_bar_cmd": iter, "output_type": "latent"}

MODULE = """
from qwenimage_core import FieldsModel, hookimpl

HOOK_API = ">=1.0,<2"

class Fields(FieldsModel):
    idle_{number}: int | None = None

@hookimpl
def request_fields():
    return Fields

@hookimpl
def condition(ctx):
    raise AssertionError("an idle plugin was called")

@hookimpl
def latent_concat(ctx):
    raise AssertionError("an idle plugin was called")

@hookimpl
def attention_mask(ctx, layout):
    raise AssertionError("an idle plugin was called")

@hookimpl
def residual_inject(ctx, layout):
    raise AssertionError("an idle plugin was called")
"""


def install(folder: Path, number: int) -> None:
    """Lay out a distribution with one plugin."""
    name = f"idle_{number}"
    (folder / f"{name}.py").write_text(MODULE.format(number=number))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[qwenimage.plugins]\n{name} = {name}\n")


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_tiny_checkpoint(Path(scratch) / "model"))
        alone = QwenImagePipeline.from_pretrained(model)
        site = Path(scratch) / "site"
        site.mkdir()
        for number in range(PLUGINS):
            install(site, number)
        sys.path.insert(0, str(site))
        discovery.refresh()
        beside = QwenImagePipeline.from_pretrained(model)
        states = [record.state for record in beside.registry.load_all() if record.name.startswith("idle")]
        assert states == ["loaded"] * PLUGINS, states

        both = compare(
            lambda: beside("a red circle", **REQUEST),
            lambda: alone("a red circle", **REQUEST),
            rounds=ROUNDS,
            clock=time.process_time,
        )
        detail = f"{both.ours:.3f} s over {both.theirs:.3f} s"
        finish(report("seven idle plugins over none", both.ratio, RATIO, detail))


if __name__ == "__main__":
    main()
