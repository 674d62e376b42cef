"""What `generate`, `explain` and `again` share: opening a pipeline, and recording what a picture is made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenimage_core.errors import RequestError
from qwenimage_core.metadata import AdapterUsed, ModelUsed, PictureMetadata, PluginUsed, describe
from qwenimage_core.parallel.launch import leads
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import CoreRequest

if TYPE_CHECKING:
    from qwenimage_core.pipeline import QwenImagePipeline
    from qwenimage_core.plan import Plan

DTYPES = ("float32", "bfloat16", "float16")
OWN = "Model and output"
RECIPE = "recipe:"


def _own(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, metavar="", show_default=False, rich_help_panel=OWN)


Model = Annotated[
    str | None,
    _own("--model", "-m", help="hub id, folder in hub layout, or an installed model (default tiny)"),
]
RecipeName = Annotated[
    str | None,
    _own("--recipe", help="a published model by name, instead of --model (`qwenimage recipes list`)"),
]
LowMemory = Annotated[
    bool, _own("--low-memory", help="open the recipe in its low-memory form (`qwenimage recipes show NAME`)")
]
MemoryLimit = Annotated[
    str | None,
    _own("--memory", help="keep to this much memory: auto, 8gb, 16gb, 24gb or bytes (docs/memory.md)"),
]
ParallelWay = Annotated[
    str | None,
    _own("--parallel", help="how processes of torchrun share the run: data (default), tensor or sequence"),
]
Compile = Annotated[
    bool, _own("--compile", help="compile the transformer's blocks: a slow first step, then faster ones")
]
Lora = Annotated[list[str] | None, _own("--lora", help="LoRA file, FILE or FILE=STRENGTH (may be repeated)")]
Dtype = Annotated[
    str | None, _own("--dtype", help=f"{', '.join(DTYPES)} (default: float32 on a CPU, else bfloat16)")
]
Device = Annotated[
    str | None, _own("--device", help="where to compute (default: the accelerator that is there)")
]
PluginFiles = Annotated[
    list[Path] | None, _own("--plugin", help="a plugin in a single file (may be repeated)")
]
NoPlugins = Annotated[bool, _own("--no-plugins", help="leave out every installed plugin")]
Json = Annotated[bool, _own("--json", help="one JSON object on stdout; errors as JSON on stderr")]
Output = Annotated[
    Path | None,
    _own(
        "--output",
        "-o",
        help="file to write: .png, .jpg, .webp (or .safetensors with --output-type tensor or latent); {n} and {seed} "
        "are filled in, several pictures get -1, -2, ... (default: the next free qwenimage-0001.png)",
    ),
]
Overwrite = Annotated[bool, _own("--overwrite", help="replace files that are there")]


@dataclass(frozen=True)
class Session:
    """An open pipeline with what has to be recorded about how it was opened."""

    pipe: QwenImagePipeline
    model: ModelUsed
    adapters: tuple[AdapterUsed, ...]

    def describe(self, plan: Plan, seed: int, output: int) -> PictureMetadata:
        """The record of the `output`-th picture of one seed of a plan."""
        registry = self.pipe.registry
        return describe(
            plan.request,
            prompt=plan.prompt,
            seed=seed,
            plugins=[
                PluginUsed(name=p.name, version=p.version, distribution=registry.record(p.name).distribution)
                for p in plan.plugins
            ],
            model=self.model,
            components=self.digests(plan),
            adapters=self.adapters,
            output=output,
            fields=[*CoreRequest.model_fields, *(f for p in plan.plugins for f in p.fields)],
        )

    def digests(self, plan: Plan) -> dict[str, str]:
        """Digest of every component by name (several of a kind are numbered), and of the LoRA files that a recipe or
        the plan's plugins bring. Adapters that a plugin computes follow from the request."""
        components = {
            name + (f"/{i}" if len(several) > 1 else ""): component.digest()
            for name, several in self.pipe.components.items()
            for i, component in enumerate(several)
        }
        recorded = {adapter.name for adapter in self.adapters}
        brought = [*(a for a in self.pipe.loras if a.name not in recorded), *plan.adapters]
        files = {f"lora/{a.name}": _digest(a.weights) for a in brought if isinstance(a.weights, str | Path)}
        return components | files


def open_session(
    model: str,
    registry: PluginRegistry,
    *,
    dtype: str | None,
    device: str | None,
    loras: Sequence[tuple[str, float]],
    low_memory: bool = False,
    memory: str | int | None = None,
    parallel: str | None = None,
    compiled: bool = False,
) -> Session:
    """Open the model (a recipe's in its low-memory form if asked; or within `memory`) and attach the LoRAs. Here
    torch is imported."""
    recipe = model.removeprefix(RECIPE) if model.startswith(RECIPE) else None
    if low_memory and recipe is None:
        raise RequestError(
            "Only a recipe has a low-memory form.",
            got=model,
            expected=f"{RECIPE}NAME (`qwenimage recipes list`)",
            mend="give --recipe NAME with --low-memory, or leave --low-memory out",
        )
    if dtype not in (None, *DTYPES):
        raise RequestError("--dtype is none that models are run in.", got=dtype, expected=", ".join(DTYPES))
    if compiled and parallel in ("tensor", "sequence"):
        raise RequestError(
            "--compile does not go with a transformer that is shared between processes.",
            got=f"--parallel {parallel}",
            mend="leave one of them out, or share pictures: --parallel data",
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    from qwenimage_core.models.compiled import compile_blocks
    from qwenimage_core.pipeline import QwenImagePipeline

    plugins: Any = registry  # taken as it is, so that plugins are found once
    shared: Any = {
        "torch_dtype": getattr(torch, dtype) if dtype else None,
        "device": device,
        "plugins": plugins,
        "memory": memory,
        "parallel": parallel,
    }
    if recipe is None:
        pipe = QwenImagePipeline.from_pretrained(model, **shared)
    else:
        pipe = QwenImagePipeline.from_recipe(recipe, low_memory=low_memory, **shared)
    if compiled:
        compile_blocks(pipe)
    used = ModelUsed(
        source=model,
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=str(pipe.device),
        low_memory=low_memory,
        memory=memory,
        compiled=compiled,
    )
    adapters = []
    for source, strength in loras:
        name = pipe.load_lora(source, strength=strength)
        adapters.append(AdapterUsed(name=name, source=source, digest=_digest(source), strength=strength))
    return Session(pipe, used, tuple(adapters))


def show_plan(session: Session, plans: Sequence[Plan]) -> None:
    """What a memory preset has chosen, on stderr."""
    from qwenimage_core.memory.report import component_facts, component_lines, stage_facts, table

    keeper = session.pipe.keeper
    if keeper.machine is not None and leads():
        lines = [*component_lines(component_facts(keeper)), *table(stage_facts(keeper, plans))]
        print("\n".join(lines), file=sys.stderr)


def show_peak(nbytes: int | None) -> None:
    """The measured peak of a run, on stderr, where there is one."""
    from qwenimage_core.memory.report import size

    if nbytes is not None:
        print(f"peak memory: {size(nbytes)}", file=sys.stderr)


def _digest(file: str | Path) -> str:
    from qwenimage_core.loading.checkpoint import Checkpoint

    return Checkpoint.open([Path(file)]).digest()


def model_of(model: str | None, recipe: str | None) -> str:
    """--model or --recipe as one name; a recipe's begins with `recipe:`, which is how pictures record it."""
    if model is not None and recipe is not None:
        raise RequestError("--model and --recipe both say what to run.", mend="leave one out")
    return f"{RECIPE}{recipe}" if recipe is not None else model or "tiny"


def parse_loras(texts: Sequence[str] | None) -> list[tuple[str, float]]:
    """FILE or FILE=STRENGTH; a file whose own name ends that way is meant as it stands."""
    found = []
    for text in texts or ():
        file, _, number = text.rpartition("=")
        if not file or Path(text).exists():
            found.append((text, 1.0))
            continue
        try:
            found.append((file, float(number)))
        except ValueError as error:
            raise RequestError(
                "--lora is FILE or FILE=STRENGTH.", got=text, expected="a number after ="
            ) from error
    return found


def progress(steps: Any) -> Any:
    """The progress bar: on stderr, and only where somebody sees it."""
    from tqdm import tqdm

    return tqdm(steps, disable=None if leads() else True, leave=False)
