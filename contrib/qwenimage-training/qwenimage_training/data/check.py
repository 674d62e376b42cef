"""Look at a whole dataset before it is trained: what is in it, how it will be cut and batched, what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwenimage_core.errors import QwenImageError
from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.batches import plan_batches
from qwenimage_training.data.columns import check_columns
from qwenimage_training.data.fields import PICTURE_COLUMNS
from qwenimage_training.data.files import Root
from qwenimage_training.data.findings import Finding, RowFacts, look_at
from qwenimage_training.data.metadata import Record, find_metadata, read_records
from qwenimage_training.data.pictures import Size
from qwenimage_training.data.rows import RowReader
from qwenimage_training.data.tokens import TokenCounter


@dataclass(frozen=True)
class SizeUse:
    """One size that targets are cut to: its rows, and the batches that these form in an epoch."""

    size: Size
    rows: int
    batches: int
    incomplete: int


@dataclass(frozen=True)
class DatasetReport:
    """`rows` are those of the metadata that can be read as rows; `columns` counts rows with a value."""

    metadata: str
    rows: int
    repeat: int
    columns: dict[str, int]
    data_file_keys: str
    empty_prompts: int
    sources: dict[str, int]
    sizes: tuple[SizeUse, ...]
    batch_size: int
    tokens_by: str
    tokens_longest: int
    tokens_limit: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"errors": self.errors, "warnings": len(self.findings) - self.errors}


def open_records(arguments: DataArguments, findings: list[Finding]) -> tuple[list[Record], RowReader]:
    """The rows that can be read, and what reads their files; rows that cannot are findings."""
    root = Root(arguments.dataset_base_path)

    def note(error: QwenImageError) -> None:
        findings.append(Finding.of("metadata", error))

    records = read_records(root.folder, arguments.dataset_metadata_path, arguments.file_keys, note)
    return records, RowReader(arguments, root)


def present_columns(base: Path, metadata: Path | None) -> str:
    """The known picture columns of a dataset, as --data_file_keys wants them."""
    ignored: Callable[[QwenImageError], None] = lambda error: None  # noqa: E731 - they are reported when it is read
    records = read_records(base, metadata, PICTURE_COLUMNS, ignored)
    columns = {column for record in records for column in record.values}
    return ",".join(column for column in PICTURE_COLUMNS if column in columns | {"image"})


def check_dataset(
    arguments: DataArguments,
    tokens: TokenCounter,
    *,
    batch_size: int = 1,
    watch: Callable[[list[Record]], Iterable[Record]] = lambda records: records,
) -> DatasetReport:
    """Decode every picture and collect every fault. `watch` may show progress over the records."""
    findings: list[Finding] = []
    records, reader = open_records(arguments, findings)
    if records:
        try:
            check_columns(arguments, records)
        except QwenImageError as error:
            findings.append(Finding.of("column", error))
    facts = [look_at(record, reader, tokens) for record in watch(records)]
    findings += [finding for fact in facts for finding in fact.findings]
    findings += _duplicates(records, facts)
    sources = Counter(fact.source for fact in facts if fact.source is not None)
    file = find_metadata(reader.root.folder, arguments.dataset_metadata_path)
    return DatasetReport(
        metadata=str(file) if file else f"captions in {reader.root.folder}",
        rows=len(records),
        repeat=arguments.dataset_repeat,
        columns=dict(sorted(Counter(column for record in records for column in record.values).items())),
        data_file_keys=arguments.data_file_keys,
        empty_prompts=sum(not record.prompt for record in records),
        sources={f"{w} x {h}": count for (w, h), count in sources.most_common()},
        sizes=_size_uses(
            [fact.trained for fact in facts if fact.trained], arguments.dataset_repeat, batch_size
        ),
        batch_size=batch_size,
        tokens_by=tokens.source,
        tokens_longest=max((fact.tokens for fact in facts), default=0),
        tokens_limit=tokens.limit,
        findings=tuple(findings),
    )


def _size_uses(sizes: list[Size], repeat: int, batch_size: int) -> tuple[SizeUse, ...]:
    """The sizes in use, the most used first, with the batches of an epoch."""
    items = sizes * repeat
    batches = plan_batches(items, batch_size, seed=0, epoch=0, shuffle=False)
    count = Counter(items[batch[0]] for batch in batches)
    short = Counter(items[batch[0]] for batch in batches if len(batch) < batch_size)
    return tuple(SizeUse(size, rows, count[size], short[size]) for size, rows in Counter(sizes).most_common())


def _duplicates(records: list[Record], facts: list[RowFacts]) -> list[Finding]:
    """Rows that say the same as an earlier one, and targets that come again, by the content of their files."""
    rows: dict[str, str] = {}
    targets: dict[str, str] = {}
    found = []
    for record, fact in zip(records, facts, strict=True):
        if fact.identity is None or fact.target is None:
            continue
        same, alike = (
            rows.setdefault(fact.identity, record.where),
            targets.setdefault(fact.target, record.where),
        )
        if same != record.where:
            found.append(Finding("duplicate", "warning", record.where, f"the same as {same}"))
        elif alike != record.where:
            found.append(Finding("duplicate", "warning", record.where, f"the same target as {alike}"))
    return found
