"""Training examples by the ten thousand: scenes with their latents and encoded captions, made from a number
alone.

The text encoder is frozen and latents are a formula, so both are computed once a pool, not once a step. A
pool is passed over a few times (with new noise) before the next replaces it. Batches hold captions of one
length: no padding, no mask.

Shape legend: B examples, L text tokens, E text width, Z latent channels, N image tokens, C packed channels.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenimage_core.errors import QwenImageError
from qwenimage_core.latents import pack
from qwenimage_core.models.prompt_templates import SUFFIX, T2I

from . import latents
from .captions import caption
from .render import render
from .scenes import sample_scene
from .text_encoder import PrefixedEncoder


class CaptionEncoder:
    """Captions to text conditions, in batches of equal length."""

    def __init__(self, model_folder: Path) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

        self.tokenizer = Qwen2Tokenizer.from_pretrained(model_folder / "tokenizer")
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_folder / "text_encoder", dtype=torch.float32
        )
        self.encode = PrefixedEncoder(model.model.language_model.eval(), self.tokenizer(T2I.prefix).input_ids)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[Tensor]:
        """One (L, E) tensor a caption, in order."""
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for number, text in enumerate(captions):
            ids = self.tokenizer(text + SUFFIX).input_ids
            by_length[len(ids)].append((number, ids))
        encoded: dict[int, Tensor] = {}
        for same in by_length.values():
            for start in range(0, len(same), 256):
                part = same[start : start + 256]
                hidden_BLE = self.encode(torch.tensor([ids for _, ids in part]))
                encoded.update(zip((number for number, _ in part), hidden_BLE, strict=True))
        return [encoded[number] for number in range(len(captions))]


TWO_THINGS = 0.75  # share of such scenes: they are harder, and show two shapes at the cost of one picture


@dataclass
class Pool:
    """Examples in float16: packed latents (count, N, C) and one (L, E) text condition each."""

    packed: Tensor
    texts: list[Tensor]

    def batches(self, size: int, seed: str) -> list[list[int]]:
        """Every example once (but for the last few of a length), in batches of equal text length, shuffled."""
        rng = random.Random(seed)
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(self.texts):
            by_length[len(text)].append(number)
        found: list[list[int]] = []
        for _, numbers in sorted(by_length.items()):
            rng.shuffle(numbers)
            found += [numbers[at : at + size] for at in range(0, len(numbers) - size + 1, size)]
        if not found:
            raise QwenImageError(
                "A pool is too small: no length of caption fills a batch.",
                got=f"{len(self.texts)} examples, batches of {size}",
                expected="some twenty batches or more in a pool",
            )
        rng.shuffle(found)
        return found

    def take(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Packed latents (B, N, C) and text conditions (B, L, E), float32."""
        return self.packed[numbers].float(), torch.stack([self.texts[number] for number in numbers]).float()


def make_pool(number: int, size: int, encoder: CaptionEncoder, held_out: bool = False) -> Pool:
    """Pool `number` of the training scenes: always the same for the same number, size and encoder."""
    rng = random.Random(f"pool-{number}-{held_out}")
    packed, captions = [], []
    for start in range(0, size, 256):
        scenes = [sample_scene(rng, held_out, TWO_THINGS) for _ in range(min(256, size - start))]
        captions += [caption(scene, rng) for scene in scenes]
        pictures = torch.stack([render(scene) for scene in scenes])
        z = latents.normalise(latents.cells(pictures))
        packed.append(pack(z[:, None]).half())
    return Pool(torch.cat(packed), [text.half() for text in encoder(captions)])
