"""`lora show|convert|formats`: what is in a LoRA file, and the same change for another program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qwenimage_core.adapters.formats import FORMATS, WRITABLE
from qwenimage_core.cli.session import Json
from qwenimage_core.errors import AdapterError

app = typer.Typer(help="Look into LoRA files and convert them.", no_args_is_help=True)

MIB = 2**20
SHOWN = 160

File = Annotated[Path, typer.Argument(metavar="FILE", help="a LoRA in safetensors form", show_default=False)]


@app.command()
def show(file: File, as_json: Json = False) -> None:
    """Show the format, layers, ranks, alphas and metadata of a LoRA file, and the model it looks made for."""
    facts = _facts(file)
    if as_json:
        print(json.dumps(facts))
        return
    console = Console()
    console.print(_facts_table(facts))
    table = Table("layers", "count", "out × in", "rank", "scale", box=None, pad_edge=False)
    for target in facts["targets"]:
        shape = " × ".join(map(str, target["shape"]))
        cells = (target["type"], str(target["count"]), shape, _list(target["ranks"]), _list(target["scales"]))
        table.add_row(*map(escape, cells))
    console.print("", table)


@app.command()
def convert(
    file: File,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"one of {', '.join(WRITABLE)}")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the file to write")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace FILE if it exists")] = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA in another program's format. It changes the weights as before; metadata is kept."""
    from qwenimage_core.adapters.convert import save_lora
    from qwenimage_core.adapters.files import load_lora

    _check_output(output, overwrite)
    weights = load_lora(file)
    notes = save_lora(weights, output, to)
    if as_json:
        facts = {"output": str(output), "from": weights.format, "to": to, "modules": len(weights.modules)}
        print(json.dumps(facts | {"notes": list(notes)}))
        return
    print(f"{output}: {len(weights.modules)} layers, {weights.format} -> {to}")
    for note in notes:
        print(f"  note: {note}")


@app.command()
def formats(as_json: Json = False) -> None:
    """List the key formats that can be read, and which of them can be written."""
    if as_json:
        rows = [asdict(row) | {"example": row.example()} for row in FORMATS]
        print(json.dumps({"formats": rows}))
        return
    table = Table("format", "--to", "keys of a layer X", "written by", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for row in FORMATS:
        key = row.key("X", next(iter(row.parts)))
        table.add_row(*map(escape, (row.name, "yes" if row.writable else "-", key, row.written_by)))
    Console().print(table)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise AdapterError("A LoRA is written as safetensors.", got=output.name, expected="NAME.safetensors")
    if not output.parent.is_dir():
        raise AdapterError(f"There is no folder {output.parent}.", mend="make it first")
    if output.exists() and not overwrite:
        raise AdapterError(f"{output} exists.", mend="choose another name, or say --overwrite")


def _facts(file: Path) -> dict[str, Any]:
    from qwenimage_core.adapters.files import load_lora
    from qwenimage_core.adapters.summary import summarise
    from qwenimage_core.loading.checkpoint import Checkpoint

    weights = load_lora(file)
    checkpoint = Checkpoint.open(file)
    size = sum(part.stat().st_size for part in checkpoint.files)
    head = {"file": str(file), "bytes": size, "digest": checkpoint.digest()}
    return head | asdict(summarise(weights)) | {"metadata": dict(weights.metadata)}


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    rows = {
        "file": f"{facts['file']} ({facts['bytes'] / MIB:.1f} MiB)",
        "digest": facts["digest"],
        "format": facts["format"],
        "made for": facts["base"],
        "layers": f"{facts['modules']}, {facts['parameters']:,} parameters, {_list(facts['dtypes'])}",
        "ranks": _counts(facts["ranks"], "full"),
        "alphas": _counts(facts["alphas"], "none (scale 1)"),
    }
    rows |= {f"  {key}": value for key, value in facts["metadata"].items()}
    for name, value in rows.items():
        table.add_row(*map(escape, (name, value if len(value) <= SHOWN else f"{value[:SHOWN]}...")))
    return table


def _counts(counts: Mapping[Any, int], missing: str) -> str:
    return ", ".join(f"{missing if value is None else _plain(value)}: {n}" for value, n in counts.items())


def _list(values: Iterable[Any]) -> str:
    return ", ".join("-" if value is None else _plain(value) for value in values)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
