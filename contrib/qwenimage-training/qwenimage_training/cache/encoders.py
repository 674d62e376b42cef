"""Encoders that note what they give, and encoders that give it again without a text encoder or a VAE.

Z latent channels, h and w latent pixels.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from qwenimage_core.encoders import Encoders
from qwenimage_core.values import Tokens
from qwenimage_training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from PIL import Image

    from qwenimage_core.models.backbone import BackboneDescription


class RecordingEncoders(Encoders):
    """Notes latents by picture, and text tokens by prompt, template and pictures."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.made: dict[str, torch.Tensor] = {}
        self.said: dict[str, Tokens] = {}

    def encode_prompt(
        self, prompt: str, template: str | None = None, pictures: tuple[Image.Image, ...] = ()
    ) -> Tokens:
        tokens = super().encode_prompt(prompt, template, pictures)
        self.said[text_key(prompt, template or self._backbone.prompt_template, pictures)] = tokens
        return tokens

    def latents(self, picture: Image.Image) -> torch.Tensor:
        latents_1Zhw = super().latents(picture)
        self.made[picture_key(picture)] = latents_1Zhw
        return latents_1Zhw

    def spoken(self) -> dict[str, torch.Tensor]:
        """The text tokens that were computed; those that were only counted are left out."""
        return {key: tokens.value for key, tokens in self.said.items() if "value" in vars(tokens)}


class ReplayingEncoders(Encoders):
    """Gives what was noted; TrainingError for anything else."""

    def __init__(
        self,
        backbone: BackboneDescription,
        made: Mapping[str, torch.Tensor],
        said: Mapping[str, torch.Tensor],
        counts: Mapping[str, int],
        name: str,
    ) -> None:
        no_prompts: Any = None
        super().__init__(no_prompts, {}, backbone)
        self.made, self.said, self.counts, self.name = made, said, counts, name

    def encode_prompt(
        self, prompt: str, template: str | None = None, pictures: tuple[Image.Image, ...] = ()
    ) -> Tokens:
        key = text_key(prompt, template or self._backbone.prompt_template, pictures)
        if key not in self.counts:
            raise self._absent(f"the prompt {prompt[:80]!r}")
        return Tokens(self.counts[key], lambda: self._found(self.said, key, f"the prompt {prompt[:80]!r}"))

    def latents(self, picture: Image.Image) -> torch.Tensor:
        return self._found(
            self.made, picture_key(picture), f"a picture of {picture.width} x {picture.height}"
        )

    def _found(self, kept: Mapping[str, torch.Tensor], key: str, what: str) -> torch.Tensor:
        if key not in kept:
            raise self._absent(what)
        return kept[key]

    def _absent(self, what: str) -> TrainingError:
        return TrainingError(
            f"A plugin encodes something in training that it did not encode when the cache was made ({self.name}).",
            got=what,
            expected=f"one of {len(self.made)} pictures and {len(self.said)} prompts",
            mend="make the cache again with --overwrite_cache, with the plugin as it is now",
        )


def picture_key(picture: Image.Image) -> str:
    """A name for the pixels of a picture."""
    found = hashlib.sha256(f"{picture.mode}:{picture.width}x{picture.height}:".encode())
    found.update(picture.tobytes())
    return found.hexdigest()


def text_key(prompt: str, template: str, pictures: tuple[Image.Image, ...]) -> str:
    return hashlib.sha256("\0".join((prompt, template, *map(picture_key, pictures))).encode()).hexdigest()
