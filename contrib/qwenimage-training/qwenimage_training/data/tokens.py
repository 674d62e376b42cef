"""How long prompts are: counted by a model's tokenizer, or estimated without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenimage_core.loading.bundle import find_bundle, load_tokenizer
from qwenimage_core.loading.sources import locate_folder
from qwenimage_core.models.prompt_templates import SUFFIX, T2I

ENTITY_LIMIT = 1024  # published: what is kept of the prompt of one entity
CHARACTERS_A_TOKEN = 4  # of ASCII text, roughly; other characters are taken for a token each
SUFFIX_TOKENS = 5  # <|im_end|>, line end, <|im_start|>, assistant, line end


@dataclass(frozen=True)
class TokenCounter:
    """`count(prompt)` is the length of the prompt's encoding, the end of the template included."""

    source: str
    exact: bool
    count: Callable[[str], int]

    @property
    def limit(self) -> int:
        """Of prompts without pictures; those with pictures have none."""
        assert T2I.max_tokens is not None
        return T2I.max_tokens


def estimate() -> TokenCounter:
    def count(prompt: str) -> int:
        plain = sum(character.isascii() for character in prompt)
        return -(-plain // CHARACTERS_A_TOKEN) + len(prompt) - plain + SUFFIX_TOKENS

    return TokenCounter(f"estimate: {CHARACTERS_A_TOKEN} ASCII characters a token", False, count)


def tokenizer_of(model: str) -> TokenCounter:
    """The tokenizer of a model by any name that `generate --model` takes, or of a folder that is a tokenizer."""
    found = find_bundle(model).tokenizer
    folder = locate_folder(found) if found is not None else Path(model).expanduser()
    tokenizer = load_tokenizer(folder)
    dropped = len(tokenizer(T2I.prefix, add_special_tokens=False)["input_ids"])

    def count(prompt: str) -> int:
        return len(tokenizer(T2I.prefix + prompt + SUFFIX, add_special_tokens=False)["input_ids"]) - dropped

    return TokenCounter(f"tokenizer of {model}", True, count)
