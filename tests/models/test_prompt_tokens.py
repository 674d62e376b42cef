"""Token counts and positions of the published templates, with a small tokenizer of the Qwen2 form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.loading.bundle import load_tokenizer
from qwenimage_core.models.prompt_templates import EDIT, EDIT_PLUS, T2I, PromptTemplate, template_of
from qwenimage_core.models.prompt_tokens import PromptTokenizer, PromptTokens


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return PromptTokenizer(load_tokenizer(tokenizer_folder))


def test_what_is_kept_starts_with_the_users_words(tokenizer):
    for template, pictures in ((T2I, 0), (EDIT, 1), (EDIT_PLUS, 2)):
        tokens = tokenizer.tokens("a red circle", template, [(1, 1)] * pictures)
        kept = tokenizer.tokenizer.decode(tokens.ids[tokens.dropped :])
        mark = "<|vision_start|><|image_pad|><|vision_end|>"
        before = {T2I: "", EDIT: mark, EDIT_PLUS: f"Picture 1: {mark}Picture 2: {mark}"}[template]
        assert kept == before + "a red circle<|im_end|>\n<|im_start|>assistant\n"
        assert tokens.kept == len(tokens.ids) - tokens.dropped


def test_the_dropped_count_does_not_depend_on_the_prompt(tokenizer):
    """A prompt that starts with a line break merges with the template's own, and must not shift the cut."""
    counts = {tokenizer.tokens(prompt, T2I).dropped for prompt in ("", "a", "\n\na", " a", "{}")}
    assert counts == {tokenizer.count_dropped(T2I)}


def test_braces_and_percent_signs_in_a_prompt_are_text():
    assert "{} {0} %s {x}<|im_end|>" in T2I.render("{} {0} %s {x}")


def test_each_picture_takes_its_grid_of_tokens(tokenizer):
    tokens = tokenizer.tokens("", EDIT_PLUS, [(2, 3), (4, 1)])
    assert tokens.ids.count(tokens.image_id) == 2 * 3 + 4 * 1
    runs = "".join("p" if token == tokens.image_id else "." for token in tokens.ids).split(".")
    assert [len(run) for run in runs if run] == [6, 4]


def test_positions_of_a_picture_between_words():
    tokens = PromptTokens(ids=(1, 9, 9, 9, 9, 9, 9, 2, 3), grids=((2, 3),), dropped=0, image_id=9)
    assert tokens.positions() == [
        (0, 0, 0),
        *((1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 1), (1, 2, 2), (1, 2, 3)),
        *((4, 4, 4), (5, 5, 5)),  # 1 + the longer side
    ]
    assert tokens.positions(flat=True) == [(i, i, i) for i in range(9)]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=3))
def test_positions_without_pictures_and_with_are_one_a_token(grids):
    ids = [1]
    for rows, columns in grids:
        ids += [9] * (rows * columns) + [2]
    positions = PromptTokens(tuple(ids), tuple(grids), 0, 9).positions()
    assert len(positions) == len(ids)
    words = [p for p, token in zip(positions, ids, strict=True) if token != 9]
    assert words == sorted(words) and len(set(words)) == len(words)


def test_too_long_a_prompt_states_the_limit_and_is_not_cut(tokenizer):
    short = PromptTemplate(name="short", system="x", max_tokens=30)
    with pytest.raises(RequestError, match="too long") as caught:
        tokenizer.tokens("circle " * 40, short)
    assert "30" in caught.value.expected
    assert tokenizer.tokens("circle " * 10, short).kept <= 30


@pytest.mark.parametrize(("template", "pictures"), [(T2I, 1), (EDIT, 0), (EDIT, 2), (EDIT_PLUS, 0)])
def test_wrong_number_of_pictures_is_an_error(tokenizer, template, pictures):
    with pytest.raises(RequestError, match="pictures"):
        tokenizer.tokens("a", template, [(1, 1)] * pictures)


def test_a_picture_marker_inside_the_prompt_is_an_error(tokenizer):
    with pytest.raises(RequestError, match="image_pad"):
        tokenizer.tokens("look: <|image_pad|>", T2I)


def test_templates_are_found_by_name_or_given():
    assert template_of("edit_plus") is EDIT_PLUS
    own = PromptTemplate(name="own", system="x")
    assert template_of(own) is own
    with pytest.raises(RequestError, match="no such prompt template"):
        template_of("edit-plus")


def test_a_tokenizer_without_the_picture_marker_is_refused():
    def bytes_only(text, add_special_tokens):
        return {"input_ids": list(text.encode())}

    with pytest.raises(LoadError, match="picture marker"):
        PromptTokenizer(bytes_only)
