"""The model in the package: hub layout, published token counts, size, and a picture."""

import json

import pytest
import torch

from qwenimage_core.models.prompt_templates import EDIT, T2I
from qwenimage_tiny import model_path
from qwenimage_tiny.text_encoder import PrefixedEncoder


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(model_path() / "tokenizer")


@pytest.mark.parametrize(("template", "dropped"), [(T2I, 34), (EDIT, 64)])
def test_the_dropped_prefix_has_the_published_length(tokenizer, template, dropped):
    assert len(tokenizer(template.prefix).input_ids) == dropped


def test_the_tokenizer_keeps_any_text(tokenizer):
    for text in ("a red circle at the top left", "Zebra, 42 % — é 红"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_word_of_a_caption_is_one_token(tokenizer):
    text = "a small green star at the top left and an orange cross on a white background"
    assert len(tokenizer(text).input_ids) == len(text.split())


def test_the_weights_fit_the_wheel():
    size = sum(file.stat().st_size for file in model_path().rglob("*.safetensors"))
    assert size <= 15_000_000


def test_the_folder_has_what_its_index_names():
    index = json.loads((model_path() / "model_index.json").read_text())
    for part in (name for name in index if not name.startswith("_")):
        assert (model_path() / part).is_dir(), part


def test_the_encoder_after_its_prefix_is_the_encoder_of_the_whole(tokenizer):
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_path() / "text_encoder", dtype=torch.float32
    )
    prefix = tokenizer(T2I.prefix).input_ids
    rest = tokenizer("a red circle on a blue background").input_ids
    with torch.no_grad():
        whole = model.model.language_model(torch.tensor([prefix + rest])).last_hidden_state[:, len(prefix) :]
        after = PrefixedEncoder(model.model.language_model, prefix)(torch.tensor([rest]))
    torch.testing.assert_close(after, whole, atol=1e-4, rtol=1e-4)
