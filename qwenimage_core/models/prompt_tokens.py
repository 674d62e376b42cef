"""From a prompt and its pictures' sizes to token numbers and their positions. Needs the tokenizer, no
weights.

A plan counts tokens with this before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.models.prompt_templates import IMAGE_TOKEN, PromptTemplate

Grid = tuple[int, int]  # rows and columns of the tokens that one picture becomes


@dataclass(frozen=True)
class PromptTokens:
    """A templated prompt: token numbers, the pictures' grids in their order, and how many leading tokens to
    drop."""

    ids: tuple[int, ...]
    grids: tuple[Grid, ...]
    dropped: int
    image_id: int

    @property
    def kept(self) -> int:
        """Length of the encoding: all tokens but the system prefix."""
        return len(self.ids) - self.dropped

    def positions(self, *, flat: bool = False) -> list[tuple[int, int, int]]:
        """(time, row, column) of each token for the encoder's rotary embedding.

        Text counts up on all three axes. A picture that starts at s stands at time s, its tokens at rows s,
        s+1, ... and columns s, s+1, ...; the text after it goes on at s + its longer side. `flat` counts
        every token instead: what pipelines on transformers 5 feed unless they name the kind of each token.
        """
        if flat:
            return [(place, place, place) for place in range(len(self.ids))]
        positions: list[tuple[int, int, int]] = []
        grids = iter(self.grids)
        at = place = 0
        while place < len(self.ids):
            if self.ids[place] == self.image_id:
                rows, columns = next(grids)
                positions += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
                at, place = at + max(rows, columns), place + rows * columns
            else:
                positions.append((at, at, at))
                at, place = at + 1, place + 1
        return positions


class PromptTokenizer:
    """A Qwen2 tokenizer (as `loading.bundle.load_tokenizer` gives it) with the family's templates around it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        marker = tokenizer(IMAGE_TOKEN, add_special_tokens=False)["input_ids"]
        if len(marker) != 1:
            raise LoadError(
                f"this tokenizer does not know the picture marker {IMAGE_TOKEN}",
                got=f"{len(marker)} tokens for it",
                expected="one special token",
                mend="load the tokenizer folder of the model, e.g. Qwen/Qwen-Image: tokenizer/",
            )
        self.image_id: int = marker[0]
        self._count_prefix = lru_cache(maxsize=None)(lambda prefix: len(self._ids(prefix)))

    def tokens(self, prompt: str, template: PromptTemplate, grids: Sequence[Grid] = ()) -> PromptTokens:
        """The templated prompt with each picture's marker widened to rows x columns tokens.

        Raises RequestError for a number of pictures the template does not take, for a prompt that holds the
        picture marker itself, and for one that is longer than the template allows: nothing is cut off in
        silence.
        """
        if IMAGE_TOKEN in prompt:
            raise RequestError(
                f"the prompt holds {IMAGE_TOKEN}, which stands for a picture",
                mend="leave it out: pictures are given beside the prompt and marked in it by the template",
            )
        ids: list[int] = []
        places = iter(grids)
        for token in self._ids(template.render(prompt, len(grids))):
            rows, columns = next(places) if token == self.image_id else (1, 1)
            ids += [token] * (rows * columns)
        found = PromptTokens(tuple(ids), tuple(grids), self.count_dropped(template), self.image_id)
        if template.max_tokens is not None and found.kept > template.max_tokens:
            raise RequestError(
                "the prompt is too long",
                got=f"{found.kept} tokens, of which {len(self._ids(template.render('', len(grids)))) - found.dropped} "
                "belong to the template",
                expected=f"at most {template.max_tokens} tokens",
                mend="shorten the prompt; the published models were trained on up to 512 tokens",
            )
        return found

    def count_dropped(self, template: PromptTemplate) -> int:
        """Tokens of the template's system part with this tokenizer (34 or 64 with the published one)."""
        return self._count_prefix(template.prefix)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
