"""Write docs/memory.md and docs/memory.png from the plans of the presets: `python docs/make_memory.py`.

The tables are of the full-size model as it was published, on machines that are numbers here; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from qwenimage_core.errors import MemoryLimitError
from qwenimage_core.loading.placement import GIB
from qwenimage_core.loading.recognise import CORE_COMPONENTS
from qwenimage_core.memory.bars import bars
from qwenimage_core.memory.outlook import Job, outlook, published
from qwenimage_core.memory.presets import NAMED, Machine, parse
from qwenimage_core.memory.report import facts, residency, size
from qwenimage_core.memory.sizes import Sizes, Work
from qwenimage_core.models.backbone import BackboneDescription

PAGE = Path(__file__).with_name("memory.md")
PICTURE = PAGE.with_suffix(".png")

HEAD = """# Memory

Tables and picture are made by `python docs/make_memory.py`; do not edit.

```text
qwenimage generate "a red circle" --recipe qwen-image --memory 8gb
qwenimage memory --recipe qwen-image --size 1328x1328 --memory 8gb -o bars.png
```

The first draws within 8 GiB, and prints the plan before and the measured peak after the run (with `--json`:
`peak_bytes`). The second only tells the plan: from the headers of files that are here, else from the published
sizes; it loads and downloads nothing. `explain` has the same table for any request.

In Python: `QwenImagePipeline.from_pretrained(..., memory="8gb")`, `from_recipe(..., memory="auto")`, and
`pipe.generate(...).peak_bytes`.

## Presets

`memory` is `"auto"` (nine tenths of what is free when the model is opened, beside what is in use), `"8gb"`,
`"16gb"`, `"24gb"` (or another number of gb), or bytes. It is the most that may be in use on the device that
computes: on an accelerator by all programs together, on a CPU the anonymous memory of this process. For each
request the first of these that fits is taken:

1. **everything stays** where it computes, from the first use on;
2. **everything stays as stored**, where files have fewer bytes than what computes (eight bits, GGUF, nf4, or bfloat16
   under float32): a block is decoded when it computes;
3. **by stage**: a component is read for its stage and leaves after it: the text encoder before the first step, the
   transformer before decoding;
4. **streamed**, each component whose stage does not fit: as many blocks as fit stay, as stored where that takes less;
   the others come while the block before them computes, from host memory where an accelerator computes and the host
   has room, else from disk.

What is chosen changes no picture: weights wait as their file has them or as they compute, and are never rounded. A
limit that cannot be kept is refused before anything is read, with the least that would do (`MemoryLimitError`, in
bytes its `least`). Counted are weights, the buffers of what comes and goes, what decoding takes, and for each run
64 MiB for libraries and allocators. Work beside weights is an estimate, within a third when it was measured: look at
the peak that is reported. LoRAs that are attached count as what is in use; those that a plugin brings for one run are
not counted. `memory` says all about placement, so that placement settings, `vram_limit` and `--low-memory` cannot be
given with it; and adapters run beside the weights, they cannot be merged into weights that leave.
"""

REST = """## What makes it small

- **The modulation table.** A third of the transformer (6.8 of its 20.4 billion values) makes modulation from the
  noise level alone. The schedule is known beforehand, so that these weights are read once a run, used for all
  steps, and never kept: bit for bit what computing them in each step gives. The next run of the same schedule does
  not read them at all.
- **Prompts are remembered.** The last 64 prompts without pictures keep their embeddings (2 MB for a long one), so
  that the same prompt with another seed or size does not need the text encoder. An adapter on the text encoder, or
  weights that changed in memory, make it compute.
- **The vision tower** of the text encoder (0.68 of its 8.3 billion values) is read when a picture is first seen.
- **One reading for both branches** of guidance: a streamed block serves both before it goes.
- **Tiles**: with `tiled`, decoding takes memory by the tile, not by the picture (`tile_size` 128 latent pixels are
  1024 of the picture; smaller tiles take less). What that measured: [performance.md](performance.md).

## Placement settings

`ModelConfig` takes the four places of DiffSynth-Studio, each a dtype and a device or `"disk"`, and
`from_pretrained` its `vram_limit`; the recipes' low-memory form (`--low-memory`) is such a setting. Presets write
the same, and these remain for those who want something else.

| setting | when | what it means here |
|---|---|---|
| `offload_dtype`, `offload_device` | another stage runs | where blocks wait; both are needed for any placement. `"disk"`: memory is given back |
| `onload_dtype`, `onload_device` | its stage runs | where blocks wait that do not stay on the device |
| `preparing_dtype`, `preparing_device` | its stage runs | blocks that stay on the device, as many as `vram_limit` allows; the device that computes |
| `computation_dtype`, `computation_device` | a block computes | default: those of the pipeline |
| `vram_limit` | | GiB that may be in use; without it all blocks are prepared. Here work beside weights is counted before, and a limit that cannot be kept is an error before anything is read |

Where we differ: a block is the unit, not a layer; weights outside of blocks (norms, projections at both ends, the
VAE) keep the dtype of computation, so that eight-bit storage rounds only what is large; and blocks are read ahead. In a
recipe's low-memory form, files that are quantised already (fp8, GGUF, nf4) wait as they are stored, for a cast to fp8
would round them a second time.
"""  # noqa: E501  a table


def page() -> str:
    """The whole page."""
    tables = "\n".join(_tables())
    return (
        f"{HEAD}\n## The full-size model\n\n{tables}\n![Bars of the plan within 8 GiB](memory.png)\n\n{REST}"
    )


MACHINES = (
    ("CUDA, bfloat16, 64 GiB of host memory", "cuda", torch.bfloat16, 64),
    ("CUDA, bfloat16, 16 GiB of host memory", "cuda", torch.bfloat16, 16),
    ("CPU, float32", "cpu", torch.float32, 0),
)


def _tables() -> Iterator[str]:
    yield "Qwen-Image as published, in bfloat16, 1328 x 1328, 40 steps with guidance, beside nothing else in use."
    for title, device, dtype, host in MACHINES:
        yield f"\n### {title}\n"
        yield "| limit | encode | denoise | decode | transformer | text encoder |\n|---|---|---|---|---|---|"
        for name in (*NAMED, "48gb", "96gb"):
            limit = parse(name)
            assert limit is not None
            yield _row(name, Machine(device, limit, 0, host * GIB), dtype)
    yield ""


def _row(name: str, machine: Machine, dtype: torch.dtype) -> str:
    sizes, work = _model(dtype)
    try:
        stages, placements = outlook(sizes, work, machine, machine.device)
    except MemoryLimitError as error:
        return f"| {name} | needs {error.expected} | | | | |"
    cells = [size(stage.nbytes) for stage in stages]
    acting = {"text_encoder": stages[0], "transformer": stages[1]}
    shares = {
        share.component: share
        for kind, stage in acting.items()
        for share in stage.shares
        if share.component == kind
    }
    for kind in reversed(acting):
        share, words = shares[kind], residency(placements[kind]) or "stays"
        blocks = (
            f"{share.blocks} of {share.of_blocks} blocks stay, "
            if share.buffers and "streamed" in words
            else ""
        )
        cells.append(blocks + words)
    return f"| {name} | {' | '.join(cells)} |"


@cache
def _model(dtype: torch.dtype) -> tuple[list[Sizes], Work]:
    parts = published(CORE_COMPONENTS, dtype)
    modules = {kind: module for kind, (_, module) in parts.items()}
    backbone = BackboneDescription.of_qwen_image(
        modules["transformer"].config, modules["vae"].config, modules["text_encoder"].width
    )
    return [sizes for sizes, _ in parts.values()], Job().work(backbone, parts["transformer"][0])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    within = Machine("cuda", 8 * GIB, 0, 16 * GIB)
    parts, work = _model(torch.bfloat16)
    plan = facts(outlook(parts, work, within, "cuda")[0], within)
    bars(plan, "Qwen-Image, 1328 x 1328, bfloat16 on CUDA, memory 8gb").save(PICTURE, optimize=True)
