"""`qwenimage dataset check PATH`: look at a dataset before it is trained. Exit code 1 if it has errors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_training.data.arguments import DataArguments

SHOWN_SIZES = 20
SHOWN_FINDINGS = 50

# arguments of training that decide what a dataset becomes
SHARED = (
    "dataset_base_path",
    "data_file_keys",
    "aligned_fields",
    "dataset_repeat",
    "height",
    "width",
    "max_pixels",
    "buckets",
    "bucket_step",
    "bucket_max_aspect",
    "bucket_enlarge",
)
OTHER_DEFAULTS = {"dataset_base_path": "that of PATH", "data_file_keys": "the known columns there are"}
PANEL = "As in training"


def register(app: typer.Typer) -> None:
    """Add the group `dataset` to the command line."""
    commands = typer.Typer(help="Look at datasets for training.", no_args_is_help=True)
    commands.callback()(dataset)
    commands.command("check")(_with_shared_options(check))
    app.add_typer(commands, name="dataset")


def dataset() -> None:
    """Look at datasets for training."""


def _own(name: str, help: str, **more: Any) -> Any:
    return typer.Option(name, help=help, metavar="", show_default=False, **more)


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a dataset's folder, or its metadata file")],
    *,
    batch_size: Annotated[int, _own("--batch_size", "rows in a batch, for the plan (default 1)", min=1)] = 1,
    model: Annotated[
        str | None,
        _own(
            "--model",
            "count tokens with the tokenizer of this model (default: estimate)",
        ),
    ] = None,
    sheet: Annotated[Path | None, _own("--sheet", "write a contact sheet, a PNG file")] = None,
    overwrite: Annotated[bool, _own("--overwrite", "replace the file of --sheet")] = False,
    as_json: Annotated[bool, _own("--json", "one JSON object on stdout; errors as JSON on stderr")] = False,
    **given: Any,
) -> None:
    """Count rows and sizes, plan buckets, and find what would stop or spoil training. Reads every picture."""
    from qwenimage_training.data import sheet as sheets
    from qwenimage_training.data.check import check_dataset, open_records
    from qwenimage_training.data.tokens import estimate, tokenizer_of

    if sheet is not None:
        sheets.check_sheet_file(sheet, overwrite=overwrite)
    elif overwrite:
        raise RequestError("--overwrite does nothing without --sheet.", mend="leave it out")
    arguments = _arguments(path, given)
    tokens = tokenizer_of(model) if model is not None else estimate()
    report = check_dataset(arguments, tokens, batch_size=batch_size, watch=_progress)
    if sheet is not None:
        sheets.save_sheet(sheets.draw_sheet(*open_records(arguments, [])), sheet)
    if as_json:
        print(json.dumps(report.as_dict() | {"sheet": None if sheet is None else str(sheet)}))
    else:
        _show(report, arguments.buckets)
    if report.errors:
        raise typer.Exit(1)


def _with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with its `**given` spelt out as the training options in SHARED; it receives those that were given.

    Text for typer, values for pydantic: the errors are those of `qwenimage train`.
    """
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    shared = [_shared(name) for name in SHARED]

    def run(**values: Any) -> None:
        command(**{name: value for name, value in values.items() if name not in SHARED or value is not None})

    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def _shared(name: str) -> inspect.Parameter:
    field = DataArguments.model_fields[name]
    help = (field.description or "").split(" (default")[0]
    default = OTHER_DEFAULTS.get(name, field.default)
    note = f" (default: {default})" if default not in (None, False) else ""
    option = typer.Option(
        f"--{name}", help=help + note, metavar="", show_default=False, rich_help_panel=PANEL
    )
    kind: Any = bool if field.annotation is bool else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _arguments(path: Path, given: dict[str, Any]) -> DataArguments:
    """The arguments that training on PATH would have."""
    from qwenimage_training.data.check import present_columns

    if not path.exists():
        raise LoadError("There is no dataset here.", got=path, expected="a folder, or a metadata file")
    metadata = path if path.is_file() else None
    base = Path(given.get("dataset_base_path") or (path.parent if metadata else path))
    values = {
        "data_file_keys": given.get("data_file_keys") or present_columns(base, metadata),
        "dataset_metadata_path": None if metadata is None else str(metadata),
        **given,
        "dataset_base_path": str(base),
    }
    try:
        return DataArguments(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"--{part}: " for part in first["loc"])
        got = first["input"] if first["loc"] else None
        raise RequestError(f"{name}{first['msg'].removeprefix('Value error, ')}", got=got) from error


def _progress(records: list[Any]) -> Any:
    from tqdm import tqdm

    return tqdm(records, disable=None, leave=False, desc="reading")


def _show(report: Any, buckets: bool) -> None:
    """The report for people: facts, sizes, then what was found, errors first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("metadata", escape(report.metadata))
    facts.add_row("rows", f"{report.rows}, {report.rows * report.repeat} an epoch")
    facts.add_row("columns", escape(", ".join(f"{name} ({rows})" for name, rows in report.columns.items())))
    facts.add_row("read as pictures", escape(f"--data_file_keys {report.data_file_keys}"))
    facts.add_row("empty prompts", str(report.empty_prompts))
    facts.add_row(
        "longest prompt", f"{report.tokens_longest} tokens of {report.tokens_limit} ({report.tokens_by})"
    )
    console.print(facts, "")
    title = "bucket" if buckets else "trained size"
    table = Table(
        title, "rows", "", f"batches of {report.batch_size}", "incomplete", box=None, pad_edge=False
    )
    most = max((use.rows for use in report.sizes), default=1)
    for use in report.sizes[:SHOWN_SIZES]:
        bar = "█" * max(round(20 * use.rows / most), 1)
        cells = (f"{use.size[0]} x {use.size[1]}", str(use.rows), bar, str(use.batches), str(use.incomplete))
        table.add_row(*cells)
    console.print(table)
    if len(report.sizes) > SHOWN_SIZES:
        console.print(f"and {len(report.sizes) - SHOWN_SIZES} more sizes (--json lists all)")
    ordered = sorted(report.findings, key=lambda finding: finding.severity)
    for finding in ordered[:SHOWN_FINDINGS]:
        where = "" if finding.message.startswith(finding.where) else f"{finding.where}: "
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(
            f"[{colour}]{finding.severity}[/] ({finding.kind}) {escape(where + finding.message)}",
            soft_wrap=True,
        )
    if len(ordered) > SHOWN_FINDINGS:
        console.print(f"and {len(ordered) - SHOWN_FINDINGS} more (--json lists all)")
    warnings = len(report.findings) - report.errors
    console.print(f"\nerrors: {report.errors}, warnings: {warnings}", highlight=False)
