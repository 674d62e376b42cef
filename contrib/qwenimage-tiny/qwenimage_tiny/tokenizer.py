"""Builds the tokenizer: the Qwen2 form, learnt from captions and the published prompt templates.

Merging goes on until every word of the corpus is one token, so the published templates have the published
number of tokens: 34 before the user's words in the text-to-image template, 64 in the editing ones.
"""

from __future__ import annotations

import random
from pathlib import Path

from qwenimage_core.models.prompt_templates import EDIT, EDIT_PLUS, T2I

from .captions import caption
from .scenes import sample_scene

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Words that no caption has, but that instructions about these pictures would.
MORE_WORDS = (
    "make change move remove add draw put turn replace swap with into to the it its one two shape shapes "
    "bigger smaller other same where is of this that image picture not no"
)
# How Qwen2 cuts text before merging: contractions, words, digits one by one, signs, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(folder: Path) -> None:
    """Learn the tokenizer and write it to `folder` in transformers' form."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = (Path(name) for name in tokenizer.model.save(str(folder)))
    learnt = Qwen2Tokenizer.from_pretrained(
        str(folder),
        vocab_file=str(vocabulary),
        merges_file=str(merges),
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token != "<|endoftext|>"],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token=None,
        model_max_length=32768,
    )
    learnt.save_pretrained(str(folder))


def _corpus() -> list[str]:
    rng = random.Random(0)
    captions = [caption(sample_scene(rng, held_out=n % 4 == 0), rng) for n in range(4000)]
    templates = [template.system for template in (T2I, EDIT, EDIT_PLUS)] * 3
    frame = ["system\n", "user\n", "assistant\n", "\n", "Picture 1: Picture 2: Picture 3: "] * 3
    words = [form for word in MORE_WORDS.split() for form in (word, f" {word}", word.capitalize())] * 3
    return captions + templates + frame + words
