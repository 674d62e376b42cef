"""Builds and trains the text encoder: a small Qwen2.5-VL whose last tokens know what the caption says.

It is trained before the transformer and then frozen. The objective: from each of the tokens that end every
prompt (`<|im_end|>` to the end) a linear head must name the ground and, in reading order, the things with
colour, shape, size and place; and every token must still tell which word it is. Held-out combinations are
never seen. The heads are thrown away; the vision tower stays as it was drawn.

Shape legend: B captions of one length, S tokens of a prompt after the fixed prefix, D width.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenimage_core.models.prompt_templates import SUFFIX, T2I

from .captions import caption
from .scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, sample_scene

WIDTH = 128
TAIL = 5  # tokens of SUFFIX
FIELDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": tuple(PLACES),
}


def build_config(tokenizer: Any) -> Any:
    """The encoder's config; token numbers are those of `tokenizer`."""
    from transformers import Qwen2_5_VLConfig

    number = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": number("<|endoftext|>"),
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
    )


class PrefixedEncoder:
    """Runs the language model after the fixed system part, whose keys and values are computed once a batch."""

    def __init__(self, language_model: nn.Module, prefix: list[int]) -> None:
        self.model = language_model
        self.prefix = torch.tensor([prefix])

    def __call__(self, ids_BS: Tensor) -> Tensor:
        """Last hidden states (B, S, D) of the tokens after the prefix, as if the whole prompt had been run."""
        batch, length = ids_BS.shape
        start = self.prefix.shape[1]
        cache = self.model(self.prefix, use_cache=True).past_key_values
        cache.batch_repeat_interleave(batch)
        positions = torch.arange(start, start + length).expand(3, batch, -1)
        return self.model(ids_BS, past_key_values=cache, position_ids=positions).last_hidden_state


class Reader(nn.Module):
    """The heads that make the encoder learn: what the caption says, and which word each token is."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.scene = nn.Linear(WIDTH, len(COLOURS) + 2 * sum(len(values) + 1 for values in FIELDS.values()))
        self.word = nn.Linear(WIDTH, vocabulary)

    def loss(self, hidden_BSD: Tensor, ids_BS: Tensor, answers_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share of captions of which everything is read right at the very last token."""
        logits = self.scene(hidden_BSD[:, -TAIL:])  # (B, TAIL, all classes)
        sizes = [len(COLOURS)] + 2 * [len(values) + 1 for values in FIELDS.values()]
        total, right = torch.zeros(()), torch.ones(len(ids_BS), dtype=torch.bool)
        for part, answer_B in zip(logits.split(sizes, dim=-1), answers_BF.unbind(1), strict=True):
            total = total + F.cross_entropy(part.flatten(0, 1), answer_B.repeat_interleave(TAIL))
            right &= part[:, -1].argmax(-1) == answer_B
        words = F.cross_entropy(self.word(hidden_BSD).flatten(0, 1), ids_BS.flatten())
        return total / len(sizes) + 0.2 * words, right.float().mean()


def answers(scene: Scene) -> list[int]:
    """Class numbers: ground, then the fields of two things; the class after the last means "no such thing"."""
    numbers = [list(COLOURS).index(scene.ground)]
    for index in range(2):
        thing = scene.things[index] if index < len(scene.things) else None
        for field, values in FIELDS.items():
            numbers.append(values.index(getattr(thing, field)) if thing else len(values))
    return numbers


def batches(tokenizer: Any, size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of captions of equal length: token numbers after the prefix (B, S) and answers (B, F)."""
    waiting: dict[int, list[tuple[list[int], list[int]]]] = {}
    while True:
        scene = sample_scene(rng)
        ids = tokenizer(caption(scene, rng) + SUFFIX).input_ids
        bucket = waiting.setdefault(len(ids), [])
        bucket.append((ids, answers(scene)))
        if len(bucket) == size:
            del waiting[len(ids)]
            yield torch.tensor([row[0] for row in bucket]), torch.tensor([row[1] for row in bucket])


def train(model_folder: Path, steps: int, batch: int = 128, peak_lr: float = 2e-3) -> None:
    """Train from scratch and write `text_encoder/` beside the `tokenizer/` of `model_folder`. Some ten minutes."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    torch.manual_seed(0)
    tokenizer = Qwen2Tokenizer.from_pretrained(model_folder / "tokenizer")
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer))
    language_model = model.model.language_model
    nn.init.normal_(
        language_model.embed_tokens.weight, std=0.5
    )  # words weigh as much as what is added to them
    encoder = PrefixedEncoder(language_model, tokenizer(T2I.prefix).input_ids)
    reader = Reader(len(tokenizer))
    parameters = [*language_model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    data = batches(tokenizer, batch, random.Random(1))
    for step in range(steps):
        ids_BS, answers_BF = next(data)
        loss, right = reader.loss(encoder(ids_BS), ids_BS, answers_BF)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"text encoder: step {step}, loss {loss.item():.4f}, captions read right {right.item():.3f}",
                flush=True,
            )
    # The language-model head is not used by any pipeline; zeros vanish in a zipped wheel.
    nn.init.zeros_(model.lm_head.weight)
    model.eval().half().save_pretrained(model_folder / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the tokenizer and train the text encoder.")
    parser.add_argument("folder", type=Path, help="the training folder; results go to its model/ folder")
    parser.add_argument("--steps", type=int, default=1600)
    arguments = parser.parse_args()
    from .tokenizer import build_tokenizer

    build_tokenizer(arguments.folder / "model" / "tokenizer")
    train(arguments.folder / "model", arguments.steps)


if __name__ == "__main__":
    main()
