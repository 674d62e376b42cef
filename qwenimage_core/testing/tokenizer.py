"""A real Qwen2 tokenizer of a few hundred pieces, in the files of the hub.

Byte-level BPE learnt from the published prompt templates until each of their words is one token: so the templates have
their published number of tokens (34 and 64 before the user's words), and any other text still splits into bytes.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qwenimage_core.models.prompt_templates import EDIT_PLUS, SUFFIX, T2I

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# In the published order; there the first one is token 151643, here they follow the learnt pieces.
SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
        *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
    )
)
# How Qwen2 cuts text into words before merging.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    T2I.system,
    EDIT_PLUS.system,
    "system\nuser\nassistant\n",
    "Picture 1: Picture 2:",
    "a red circle on blue",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}" + SUFFIX.split("\n", 1)[1] + "{% endif %}"
)


@cache
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer itself, learnt once a process; the same everywhere."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def token_ids() -> dict[str, int]:
    """Special token -> its number in the tiny tokenizer."""
    vocabulary = tiny_tokenizer().get_vocab()
    return {token: vocabulary[token] for token in SPECIAL_TOKENS}


def write_tokenizer(folder: Path) -> None:
    """The files of `tokenizer/` as on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    others = [token for token in SPECIAL_TOKENS if token != "<|endoftext|>"]
    names = {"additional_special_tokens": others, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {"content": token, **flags} for token, number in token_ids().items()
        },
        **names,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    files = {"tokenizer_config": config, "special_tokens_map": names, "added_tokens": token_ids()}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), "utf-8")
