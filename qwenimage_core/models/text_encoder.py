"""The text encoder, Qwen2.5-VL, built from transformers' modules under the published tensor names.

No language-model head. The vision tower is there only when asked for: without pictures nobody needs it.

Shape legend: S tokens of one prompt, L of them kept, D width, V picture tokens, G patches, F features of a
patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.models.prompt_templates import T2I, PromptTemplate, template_of
from qwenimage_core.models.prompt_tokens import PromptTokenizer, PromptTokens
from qwenimage_core.models.vision import PicturePreparation

if TYPE_CHECKING:
    from PIL.Image import Image

PUBLISHED_CONFIG: Mapping[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}
"""Qwen2.5-VL-7B, for checkpoints with no config.json beside them."""

REMEMBERED = 64  # prompts; one of 300 tokens takes 2 MB
VISION_THETA = 10000.0  # base of the vision tower's rotary frequencies, where config.json does not state it


class TextEncoder(nn.Module):
    """Token numbers (and picture patches) -> last hidden state after the final norm.

    `config` is the content of `text_encoder/config.json`. With `vision=False` the vision tower is not built
    and pictures are refused. Tensors have the names of the files on the hub: `model.*` and `visual.*`.
    """

    def __init__(self, config: Mapping[str, Any] = PUBLISHED_CONFIG, *, vision: bool = True) -> None:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextModel
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
            Qwen2_5_VisionTransformerPretrainedModel,
        )

        super().__init__()
        if config.get("model_type") != "qwen2_5_vl":
            raise LoadError(
                "this is not the config of a Qwen2.5-VL text encoder",
                got=f"model_type = {config.get('model_type')}",
                expected="qwen2_5_vl",
            )
        with _quiet():
            self.config = Qwen2_5_VLConfig(**_copied(config))
        rope = self.config.text_config.rope_parameters
        if rope["rope_type"] != "default":
            raise LoadError(
                "unknown rotary embedding in the text encoder", got=rope["rope_type"], expected="default"
            )
        self.model = Qwen2_5_VLTextModel(self.config.text_config)
        _pin_frequencies(self.model.rotary_emb, rope["rope_theta"])
        self.visual: Any = None
        if vision:
            self.visual = Qwen2_5_VisionTransformerPretrainedModel(self.config.vision_config)
            rope = getattr(self.config.vision_config, "rope_parameters", None) or {}
            _pin_frequencies(self.visual.rotary_pos_emb, rope.get("rope_theta", VISION_THETA))

    @property
    def width(self) -> int:
        return self.config.text_config.hidden_size

    def forward(
        self, tokens: PromptTokens, patches_GF: Tensor | None = None, *, flat: bool = False
    ) -> Tensor:
        """(1, S, D) of one prompt. `patches_GF` are those of all its pictures, one picture after the
        other."""
        device = self.model.norm.weight.device  # the embedding may be on its way
        ids_1S = torch.tensor([tokens.ids], device=device)
        embeds_1SD = self.model.embed_tokens(ids_1S)
        if patches_GF is not None:
            features_VD = self._see(patches_GF.to(device), tokens).to(embeds_1SD.dtype)
            embeds_1SD = embeds_1SD.masked_scatter((ids_1S == tokens.image_id)[..., None], features_VD)
        positions_31S = torch.tensor(tokens.positions(flat=flat), device=device).T[:, None]
        return self.model(
            inputs_embeds=embeds_1SD, position_ids=positions_31S, use_cache=False
        ).last_hidden_state

    def _see(self, patches_GF: Tensor, tokens: PromptTokens) -> Tensor:
        """The pictures as prompt tokens (V, D)."""
        if self.visual is None:
            raise RequestError(
                "a picture was given, but the text encoder was loaded without its vision tower",
                mend="take the whole text encoder as safetensors (GGUF files have none), or load it with vision=True",
            )
        merge = self.config.vision_config.spatial_merge_size
        grids = torch.tensor([(1, rows * merge, columns * merge) for rows, columns in tokens.grids])
        seen = self.visual(patches_GF.to(self.visual.dtype), grid_thw=grids.to(patches_GF.device))
        return seen.pooler_output


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt cut into tokens, with its pictures: all that is known before the text encoder is loaded."""

    prompt: PromptTokens
    pictures: tuple[Image, ...]

    @property
    def tokens(self) -> int:
        """Length of the text condition."""
        return self.prompt.kept


class PromptEncoder:
    """A prompt, its template and its pictures -> the text condition of the transformer.

    `encoder` gives the text encoder; it is called when a prompt is encoded, not before. `positions` are those
    that Qwen2.5-VL was trained with; "flat" counts picture tokens like words, as the peers do under
    transformers 5, and is there to compare with them.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        encoder: Callable[[], TextEncoder],
        preparation: PicturePreparation | None = None,
        *,
        positions: Literal["multimodal", "flat"] = "multimodal",
        unchanged: Callable[[], bool] = lambda: False,
    ) -> None:
        self.tokenizer = tokenizer
        self.preparation = preparation or PicturePreparation()
        self.positions = positions
        self._encoder, self._unchanged = encoder, unchanged
        self._remembered: OrderedDict[Hashable, Tensor] = OrderedDict()

    def prepare(
        self, prompt: str, template: PromptTemplate | str = T2I, pictures: Sequence[Image] = ()
    ) -> PreparedPrompt:
        """Tokens of the templated prompt; RequestError where prompt, template and pictures do not fit."""
        grids = [self.preparation.grid(*picture.size) for picture in pictures]
        return PreparedPrompt(self.tokenizer.tokens(prompt, template_of(template), grids), tuple(pictures))

    def run(self, prepared: PreparedPrompt) -> Tensor:
        """text_LD: the hidden state after the final norm, the system part of the template dropped."""
        if prepared.pictures or torch.is_grad_enabled() or not self._unchanged():
            return self._compute(prepared)
        key = (tuple(prepared.prompt.ids), prepared.prompt.dropped, self.positions)
        if key not in self._remembered:
            self._remembered[key] = self._compute(prepared)
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]

    def _compute(self, prepared: PreparedPrompt) -> Tensor:
        encoder, tokens = self._encoder(), prepared.prompt
        self._check(encoder)
        patches = [self.preparation.patches(picture) for picture in prepared.pictures]
        patches_GF = torch.cat(patches) if patches else None
        return encoder(tokens, patches_GF, flat=self.positions == "flat")[0, tokens.dropped :]

    @torch.no_grad()
    def encode(
        self, prompt: str, template: PromptTemplate | str = T2I, pictures: Sequence[Image] = ()
    ) -> Tensor:
        """`run` of what `prepare` gives."""
        return self.run(self.prepare(prompt, template, pictures))

    def _check(self, encoder: TextEncoder) -> None:
        """A tokenizer or picture processor of another model gives wrong text conditions without any
        failure."""
        vision, given = encoder.config.vision_config, self.preparation
        asked = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        if asked != (given.patch_size, given.temporal_patch_size, given.merge_size):
            raise LoadError(
                "the picture processor does not belong to this text encoder",
                got=f"patch, frames, merge = {given.patch_size, given.temporal_patch_size, given.merge_size}",
                expected=asked,
            )
        if self.tokenizer.image_id != encoder.config.image_token_id:
            raise LoadError(
                "the tokenizer does not belong to this text encoder",
                got=f"picture marker is token {self.tokenizer.image_id}",
                expected=f"{encoder.config.image_token_id}, the image_token_id of text_encoder/config.json",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """The published config.json spells the rotary sections as transformers 4 did; version 5 reads them right and
    prints two lines about it at every load."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _copied(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers changes the mappings that it is given."""
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in config.items()}


def _pin_frequencies(rotary: Any, theta: float) -> None:
    """Hold the rotary frequencies as a plain float32 attribute instead of a buffer.

    A buffer would be rounded by `.to(bfloat16)` (0.4 % off), lost on the meta device, and mostly zero in float8.
    """
    count = len(rotary.inv_freq)
    for name in [name for name in rotary._buffers if name.endswith("inv_freq")]:
        delattr(rotary, name)
    exponents = torch.arange(0, 2 * count, 2, dtype=torch.float32, device="cpu") / (2 * count)
    rotary.inv_freq = 1.0 / theta**exponents
