"""`qwenimage dataset check`: what is wrong is found, what is right is not complained about."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.loading.bundle import load_tokenizer
from qwenimage_core.models.prompt_templates import T2I
from qwenimage_core.models.prompt_tokens import PromptTokenizer
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_training.data.check_command import register
from qwenimage_training.data.tokens import estimate, tokenizer_of


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return app


def check(app, *words) -> tuple[int, dict]:
    """Exit code and report; errors of the call itself are raised."""
    result = CliRunner().invoke(app, ["dataset", "check", *map(str, words), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout)


def found(report: dict, severity: str = "error") -> list[tuple[str, str]]:
    return [(f["kind"], f["where"]) for f in report["findings"] if f["severity"] == severity]


def said(report: dict) -> str:
    return "\n".join(f["message"] for f in report["findings"])


def noise(folder, name: str, size: tuple[int, int]) -> str:
    Image.effect_noise(size, 50).convert("RGB").save(folder.path / name)
    return name


def test_a_sound_dataset_has_no_findings(folder, app) -> None:
    rows = [
        {"prompt": f"p{i}", "image": noise(folder, f"{i}.png", (130, 70) if i < 3 else (64, 64))}
        for i in range(5)
    ]
    rows[0]["edit_image"] = noise(folder, "e.png", (300, 100))
    rows[1]["context_image"] = noise(folder, "c.png", (260, 140))
    rows[4]["prompt"] = ""
    folder.jsonl(rows)
    code, report = check(app, folder.path, "--batch_size", "2", "--dataset_repeat", "3")
    assert (code, report["findings"]) == (0, [])
    assert (report["rows"], report["empty_prompts"], report["errors"]) == (5, 1, 0)
    assert report["columns"] == {"context_image": 1, "edit_image": 1, "image": 5}
    assert report["data_file_keys"] == "image,edit_image,context_image"
    assert report["sources"] == {"130 x 70": 3, "64 x 64": 2}
    assert report["sizes"] == [
        {"size": [128, 64], "rows": 3, "batches": 5, "incomplete": 1},
        {"size": [64, 64], "rows": 2, "batches": 3, "incomplete": 0},
    ]


def test_every_fault_of_every_row_is_found(folder, app) -> None:
    whole = noise(folder, "a.png", (64, 64))
    noise(folder, "wide.png", (128, 32))
    noise(folder, "thin.png", (200, 8))
    (folder.path / "cut.png").write_bytes((folder.path / "a.png").read_bytes()[:-600])
    rows = [
        {"prompt": "1", "image": "none.png", "edit_image": "../a.png"},
        {"prompt": "2", "image": "cut.png"},
        {"prompt": "3", "image": whole, "context_image": "wide.png"},
        {"prompt": "4", "image": "thin.png"},
        {"prompt": "5", "image": whole, "eligen_entity_masks": ["a.png"]},
        {"prompt": "6", "image": whole, "blockwise_controlnet_inpaint_mask": "a.png"},
        {"prompt": "7", "image": [whole, whole], "layer_num": 3},
        {"image": whole},
    ]
    folder.jsonl(rows)
    code, report = check(app, folder.path)
    assert code == 1
    row = "metadata.jsonl, row {0} (line {0})".format
    assert sorted(found(report)) == sorted(
        [
            ("metadata", ""),
            ("file", row(1)),
            ("file", row(1)),
            ("file", row(2)),
            ("pair", row(3)),
            ("size", row(4)),
            ("pair", row(5)),
            ("pair", row(6)),
            ("pair", row(7)),
        ]
    )
    for words in (
        "row 8 (line 8): there is no prompt",
        "truncated",
        "1 masks and 0 prompts",
        "leaves the dataset",
    ):
        assert words in said(report)


def test_rows_that_come_again_are_found_by_content(folder, app) -> None:
    noise(folder, "a.png", (64, 64))
    (folder.path / "copy.png").write_bytes((folder.path / "a.png").read_bytes())
    rows = [{"prompt": p, "image": i} for p, i in (("p", "a.png"), ("p", "copy.png"), ("q", "a.png"))]
    folder.csv(rows)
    code, report = check(app, folder.path / "metadata.csv")
    assert code == 0
    assert [kind for kind, _ in found(report, "warning")] == ["duplicate", "duplicate"]
    messages = [f["message"] for f in report["findings"]]
    assert messages == [
        "the same as metadata.csv, row 1 (line 2)",
        "the same target as metadata.csv, row 1 (line 2)",
    ]


def test_what_is_cut_off_and_what_is_not_read_is_worth_a_look(folder, app) -> None:
    folder.jsonl([{"prompt": "p", "image": noise(folder, "a.png", (640, 64)), "own_image": "a.png"}])
    code, report = check(app, folder.path, "--buckets", "--max_pixels", "4096", "--bucket_step", "32")
    assert (code, sorted(kind for kind, _ in found(report, "warning"))) == (0, ["column", "cut"])
    assert "own_image" in said(report)
    assert found(check(app, folder.path, "--data_file_keys", "image,own_image")[1], "warning") == []


def test_a_folder_with_captions(folder, app) -> None:
    noise(folder, "a.png", (64, 64))
    noise(folder, "b.png", (64, 64))
    folder.text("a.txt", "a picture")
    code, report = check(app, folder.path)
    assert (code, report["rows"]) == (1, 1)
    assert "b.png" in said(report)
    folder.text("b.txt", "another")
    assert check(app, folder.path)[0] == 0


def test_tokens_are_counted_by_the_tokenizer_and_estimated_without(folder, app, tmp_path) -> None:
    model = write_tiny_checkpoint(tmp_path / "model")
    prompt = "a red circle on a blue field, " * 1000
    folder.jsonl([{"prompt": prompt, "image": noise(folder, "a.png", (64, 64))}])
    code, report = check(app, folder.path)
    assert (code, found(report, "warning")[0][0]) == (0, "tokens")
    assert "by estimate" in said(report)
    assert report["tokens_by"].startswith("estimate")
    code, report = check(app, folder.path, "--model", model)
    assert (code, found(report)[0][0]) == (1, "tokens")
    assert report["tokens_limit"] == T2I.max_tokens == 4096
    counter = tokenizer_of(str(model))
    one, two = counter.count("a red circle"), counter.count("a red circle, a red circle")
    assert report["tokens_longest"] == counter.count(prompt) > two > one > counter.count("") > 0


def test_a_model_is_named_as_for_pictures(folder, app, tmp_path, monkeypatch) -> None:
    """`--model tiny`, or whatever else is installed, as `generate --model` has it."""
    model = write_tiny_checkpoint(tmp_path / "model")
    installed = EntryPoint("small", "pathlib:Path.cwd", "qwenimage.models")
    monkeypatch.setattr("qwenimage_core.loading.bundle.entry_points", lambda group: [installed])
    monkeypatch.chdir(model)
    folder.jsonl([{"prompt": "a red circle", "image": noise(folder, "a.png", (64, 64))}])
    code, report = check(app, folder.path, "--model", "small")
    assert (code, report["tokens_by"]) == (0, "tokenizer of small")
    assert report["tokens_longest"] == tokenizer_of(str(model)).count("a red circle")
    with pytest.raises(LoadError, match="did you mean 'small'"):
        check(app, folder.path, "--model", "smal")


@pytest.mark.parametrize("prompt", ["", "a red circle", "漢字 «große» \n\n x", "<|im_end|>", " lead"])
def test_tokens_are_those_that_the_model_sees(prompt: str, tmp_path) -> None:
    model = write_tiny_checkpoint(tmp_path / "model")
    encoder = PromptTokenizer(load_tokenizer(model / "tokenizer"))
    assert tokenizer_of(str(model)).count(prompt) == encoder.tokens(prompt, T2I).kept


def test_an_estimate_takes_other_scripts_for_a_token_a_character() -> None:
    count = estimate().count
    assert count("漢字漢字") - count("") == 4
    assert count("abcdefgh") - count("") == 2


def test_an_edit_prompt_has_no_limit(folder, app) -> None:
    noise(folder, "a.png", (64, 64))
    folder.jsonl([{"prompt": "x" * 30000, "image": "a.png", "edit_image": "a.png"}])
    assert check(app, folder.path)[1]["findings"] == []


def test_the_contact_sheet_shows_rows_and_faults(folder, app, tmp_path) -> None:
    folder.picture("a.png", (64, 64), (200, 0, 0))
    folder.picture("c.png", (64, 64), (0, 0, 200))
    folder.jsonl(
        [
            {"prompt": "café 漢字", "context_image": "c.png", "image": "a.png"},
            {"prompt": "p", "image": "none"},
        ]
    )
    file = tmp_path / "sheet.png"
    code, report = check(app, folder.path, "--data_file_keys", "context_image,image", "--sheet", file)
    assert (code, report["sheet"]) == (1, str(file))
    with Image.open(file) as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**24)}
    assert {(200, 0, 0), (0, 0, 200), (255, 0, 0)} <= colours
    with pytest.raises(RequestError, match="there already"):
        check(app, folder.path, "--sheet", file)
    assert check(app, folder.path, "--sheet", file, "--overwrite")[0] == 1
    assert [f.name for f in tmp_path.iterdir() if "part" in f.name] == []


def test_the_report_for_people(folder, app) -> None:
    folder.jsonl(
        [{"prompt": "p", "image": noise(folder, "a.png", (64, 64))}, {"prompt": "[p]", "image": "none.png"}]
    )
    result = CliRunner().invoke(app, ["dataset", "check", str(folder.path)])
    assert result.exit_code == 1
    for words in ("64 x 64", "none.png", "errors: 1, warnings: 0", "--data_file_keys image", "estimate"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("words", "error", "words_said"),
    [
        (["--height", "64"], RequestError, "height alone does nothing"),
        (["--max_pixels", "many"], RequestError, "--max_pixels"),
        (["--bucket_step", "32"], RequestError, "without buckets"),
        (["--sheet", "sheet.jpg"], RequestError, "PNG"),
        (["--sheet", "nowhere/sheet.png"], RequestError, "folder of --sheet"),
        (["--overwrite"], RequestError, "does nothing"),
        (["--model", "nobody"], LoadError, "no model 'nobody'"),
    ],
)
def test_a_call_that_cannot_be_right(folder, app, words, error, words_said: str) -> None:
    folder.jsonl([{"prompt": "p", "image": folder.picture("a.png")}])
    with pytest.raises(error, match=words_said):
        check(app, folder.path, *words)


def test_a_path_with_nothing_there(tmp_path, app) -> None:
    with pytest.raises(LoadError, match="no dataset here"):
        check(app, tmp_path / "none")


def test_a_model_folder_without_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(LoadError, match="no tokenizer"):
        tokenizer_of(str(tmp_path))
