"""How long prompts are: counted by a model's tokenizer, or estimated without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenimage_core import ModelConfig
from qwenimage_core.errors import LoadError
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
    """The tokenizer of a folder in hub layout, of a folder that is a tokenizer, or of a hub id (which downloads it)."""
    from transformers import AutoTokenizer

    path = Path(model).expanduser()
    if path.is_dir():
        folder = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    elif model.count("/") == 1 and not model.startswith((".", "/", "~")):
        folder = locate_folder(ModelConfig(model_id=model, origin_file_pattern="tokenizer/"))
    else:
        raise LoadError(
            f"There is no model {model!r} to count tokens with.",
            expected='a folder in hub layout, or a hub id as "Qwen/Qwen-Image"',
            mend="leave --model out to have tokens estimated",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"{folder} holds no tokenizer that can be read.",
            got=str(error).splitlines()[0],
            expected="tokenizer.json",
        ) from error
    dropped = len(tokenizer(T2I.prefix, add_special_tokens=False)["input_ids"])

    def count(prompt: str) -> int:
        return len(tokenizer(T2I.prefix + prompt + SUFFIX, add_special_tokens=False)["input_ids"]) - dropped

    return TokenCounter(f"tokenizer of {model}", True, count)
