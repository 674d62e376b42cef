"""What is written down becomes records; what is broken names its row and how to mend it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenimage_core.errors import LoadError
from qwenimage_training.data.metadata import read_records

KEYS = ("image", "edit_image", "eligen_entity_masks")

cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=40)


def read(folder, keys=KEYS):
    return read_records(folder.path, None, keys)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(cells, min_size=1, max_size=5))
def test_the_three_forms_give_the_same_prompts_to_the_letter(folder, prompts) -> None:
    rows = [{"image": "a.png", "prompt": prompt} for prompt in prompts]
    for write in (folder.csv, folder.jsonl, folder.json):
        file = write(rows)
        assert [r.prompt for r in read(folder)] == prompts, file.name
        file.unlink()


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "", "1", "true", "[1, 2]", "[x"])
def test_words_in_a_prompt_stay_words(folder, word: str) -> None:
    folder.csv([{"image": "a.png", "prompt": word, "note": "x"}])
    (record,) = read(folder)
    assert record.prompt == word


@pytest.mark.parametrize("cell", ["", "None", "null", "nan", " "])
def test_an_empty_csv_cell_is_absent(folder, cell: str) -> None:
    folder.csv([{"image": "a.png", "prompt": "p", "edit_image": cell, "seed": cell}])
    (record,) = read(folder)
    assert dict(record.values) == {"image": "a.png"}


@pytest.mark.parametrize("value", [None, "", [], float("nan")])
def test_null_and_its_like_are_absent_in_json(folder, value) -> None:
    folder.jsonl([{"image": "a.png", "prompt": "p", "edit_image": value}])
    (record,) = read(folder)
    assert "edit_image" not in record.values


def test_csv_cells_hold_lists_and_numbers(folder) -> None:
    folder.csv(
        [
            {
                "image": "a.png",
                "prompt": "p",
                "eligen_entity_masks": json.dumps(["m0.png", "m1.png"]),
                "eligen_entity_prompts": json.dumps(["a girl", "a sign"]),
                "layer_num": 3,
                "cfg_scale": 1.5,
                "zero_cond_t": True,
                "note": "007",
                "edit_image": "1",
            }
        ]
    )
    (record,) = read(folder)
    assert record.values["eligen_entity_masks"] == ["m0.png", "m1.png"]
    assert record.values["eligen_entity_prompts"] == ["a girl", "a sign"]
    assert (record.values["layer_num"], record.values["cfg_scale"]) == (3, 1.5)
    assert record.values["zero_cond_t"] is True
    assert record.values["note"] == "007"
    assert record.values["edit_image"] == "1"  # the name of a file, not a number


def test_blank_lines_and_a_byte_order_mark_do_no_harm(folder) -> None:
    folder.text(
        "metadata.jsonl", '\ufeff\n{"prompt": "p", "image": "a.png"}\n\n  \n{"prompt": "q", "image": "b.png"}'
    )
    assert [r.prompt for r in read(folder)] == ["p", "q"]
    (folder.path / "metadata.jsonl").unlink()
    folder.text("metadata.csv", '\ufeffprompt,image\n\np,a.png\n\n"q, r\ns",b.png\n')
    assert [r.prompt for r in read(folder)] == ["p", "q, r\ns"]


BROKEN = {
    "csv without prompt": ("metadata.csv", "image,text\na.png,x\n", ["no column prompt", "image, text"]),
    "csv without image": ("metadata.csv", "file,prompt\na.png,x\n", ["no column image"]),
    "csv with a column twice": ("metadata.csv", "image,prompt,prompt\na,b,c\n", ["each column once"]),
    "csv with too many cells": (
        "metadata.csv",
        "image,prompt\na.png,x\nb.png,y, z\n",
        ["row 2", "3 cells", "quotes"],
    ),
    "csv with too few cells": ("metadata.csv", "image,prompt\na.png\n", ["row 1", "1 cells"]),
    "csv with an open quote": ("metadata.csv", 'image,prompt\na.png,"x\n', ["row 1", "no csv"]),
    "csv with an empty image": ("metadata.csv", "image,prompt\n,x\n", ["row 1", "no image"]),
    "csv with a broken list": ("metadata.csv", "image,prompt\n[a.png,x\n", ["row 1", "list is no JSON"]),
    "csv without rows": ("metadata.csv", "image,prompt\n", ["holds no row"]),
    "json with one object": ("metadata.json", '{"prompt": "p"}', ["unknown shape", "dict", ".jsonl"]),
    "json that is cut off": ("metadata.json", '[{"prompt": "p"', ["no JSON"]),
    "jsonl with a cut line": (
        "metadata.jsonl",
        '{"prompt":"p","image":"a"}\n\n{"prom',
        ["row 2 (line 3)", "no JSON"],
    ),
    "jsonl with a list": ("metadata.jsonl", '["p", "a.png"]', ["row 1", "unknown shape"]),
    "jsonl without prompt": ("metadata.jsonl", '{"image": "a.png"}', ["row 1", "no prompt", '""']),
    "jsonl with a null prompt": (
        "metadata.jsonl",
        '{"image": "a.png", "prompt": null}',
        ["no prompt", "None"],
    ),
    "jsonl with a number as prompt": (
        "metadata.jsonl",
        '{"image": "a.png", "prompt": 3}',
        ["no prompt", "3"],
    ),
    "jsonl without image": ("metadata.jsonl", '{"prompt": "p"}', ["row 1", "no image"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(folder, case: str) -> None:
    name, text, said = BROKEN[case]
    folder.text(name, text)
    with pytest.raises(LoadError) as caught:
        read(folder)
    for part in (name, *said):
        assert part in str(caught.value)
    assert caught.value.expected


def test_every_broken_row_is_reported_where_that_is_asked(folder) -> None:
    folder.text("metadata.jsonl", '{"image": "a"}\n{"prompt": "p", "image": "a"}\nx\n')
    errors: list[Exception] = []
    records = read_records(folder.path, None, KEYS, errors.append)
    assert len(records) == 1
    assert ["row 1" in str(errors[0]), "row 3" in str(errors[1])] == [True, True]


def test_text_in_another_encoding_is_refused(folder) -> None:
    (folder.path / "metadata.csv").write_bytes("image,prompt\na.png,café\n".encode("latin-1"))
    with pytest.raises(LoadError, match="not UTF-8") as caught:
        read(folder)
    assert "0xe9" in str(caught.value)


def test_an_unknown_form_is_refused(folder) -> None:
    file = folder.text("rows.parquet", "x")
    with pytest.raises(LoadError, match="parquet"):
        read_records(folder.path, file, KEYS)
    with pytest.raises(LoadError, match="not there"):
        read_records(folder.path, folder.path / "none.csv", KEYS)


def test_two_metadata_files_are_a_question(folder) -> None:
    folder.json([])
    folder.jsonl([])
    with pytest.raises(LoadError, match="several"):
        read(folder)


def test_a_folder_with_captions(folder) -> None:
    folder.picture("b.png")
    folder.picture("sub/a.JPG")
    folder.text("b.txt", "\ufeffNone \n")
    folder.text("sub/a.txt", "")
    records = read(folder)
    assert [(r.where, r.prompt, r.values["image"]) for r in records] == [
        ("b.png", "None", "b.png"),
        ("sub/a.JPG", "", "sub/a.JPG"),
    ]


def test_pictures_and_captions_must_come_in_pairs(folder) -> None:
    folder.picture("a.png")
    with pytest.raises(LoadError, match="without a caption") as caught:
        read(folder)
    assert "a.png" in str(caught.value)
    folder.text("a.txt", "x")
    folder.text("b.txt", "x")
    with pytest.raises(LoadError, match="without a picture") as caught:
        read(folder)
    assert "b.txt" in str(caught.value)


def test_an_empty_folder_is_no_dataset(folder) -> None:
    with pytest.raises(LoadError, match="neither metadata nor pictures"):
        read(folder)
