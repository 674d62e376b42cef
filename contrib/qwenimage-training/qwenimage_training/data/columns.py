"""Whether the names in the arguments mean columns that the dataset has: one that means none would do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from qwenimage_core.errors import LoadError
from qwenimage_training.data.arguments import DEFAULT_KEYS, DataArguments, names
from qwenimage_training.data.fields import is_condition, matches
from qwenimage_training.data.metadata import Record


def check_columns(arguments: DataArguments, records: Iterable[Record]) -> None:
    """Refuse arguments that no row gives anything to do."""
    columns = {column for record in records for column in record.values}
    for key in arguments.file_keys:
        if key not in columns and key not in DEFAULT_KEYS:
            raise _unknown("data_file_keys", key, sorted(columns))
    pictures = sorted(columns & set(arguments.file_keys))
    for pattern in names(arguments.aligned_fields):
        if not any(matches(column, (pattern,)) for column in pictures):
            raise _unknown("aligned_fields", pattern, pictures)
    for pattern in arguments.dropped_fields or ():
        if not any(matches(column, (pattern,)) for column in columns):
            raise _unknown("condition_fields", pattern, sorted(columns))
        if matches("image", (pattern,)):
            raise LoadError(
                "--condition_fields would leave out the target.", got=pattern, expected="columns beside image"
            )
    droppable = any(is_condition(c, c in pictures, arguments.dropped_fields) for c in columns)
    if arguments.condition_dropout and not droppable:
        raise LoadError(
            "--condition_dropout has nothing to leave out: no row has a condition.",
            got=f"columns {', '.join(sorted(columns))}",
            expected="a picture column beside image, named in --data_file_keys",
            mend="leave --condition_dropout out, or say which columns with --condition_fields",
        )


def _unknown(argument: str, name: str, columns: Sequence[str]) -> LoadError:
    near = get_close_matches(name, columns, n=1)
    return LoadError(
        f"--{argument} names {name}, which no row has.",
        got=f"columns {', '.join(columns)}",
        expected="columns of the metadata",
        mend=f"did you mean {near[0]}?" if near else "leave it out",
    )
