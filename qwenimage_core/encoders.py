"""Prompts and pictures to tokens: counted at once from the tokenizer and the sizes, computed on first use.

Z latent channels, h and w latent pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import RequestError
from qwenimage_core.layout import Grid
from qwenimage_core.values import Tokens

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from qwenimage_core.loading.components import Component
    from qwenimage_core.models.backbone import BackboneDescription
    from qwenimage_core.models.text_encoder import PromptEncoder


class Encoders:
    """Turns what a request gives into `Tokens`. The same prompt or picture is encoded once, however often asked for.

    One is made for each request, so nothing outlives the pictures it belongs to.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        components: Mapping[str, Sequence[Component]],
        backbone: BackboneDescription,
        *,
        tile: tuple[int, int] | None = None,
    ) -> None:
        self._prompts, self._components, self._backbone, self._tile = prompts, components, backbone, tile
        self._texts: dict[tuple[Any, ...], Tokens] = {}
        self._pictures: dict[int, tuple[Image.Image, Tokens]] = {}

    def encode_prompt(
        self, prompt: str, template: str | None = None, pictures: tuple[Image.Image, ...] = ()
    ) -> Tokens:
        template = self._backbone.prompt_template if template is None else template
        key = (prompt, template, *map(id, pictures))
        if key not in self._texts:
            prepared = self._prompts.prepare(prompt, template, pictures)
            self._texts[key] = Tokens(prepared.tokens, lambda: self._prompts.run(prepared)[None])
        return self._texts[key]

    def encode_picture(self, picture: Image.Image) -> Tokens:
        if id(picture) not in self._pictures:
            multiple = self._backbone.size_multiple
            if picture.width % multiple or picture.height % multiple:
                raise RequestError(
                    f"A picture's sides must be multiples of {multiple} to become tokens.",
                    got=f"{picture.width} x {picture.height}",
                    mend="resize or crop it first",
                )
            grid = Grid(height=picture.height // multiple, width=picture.width // multiple)
            tokens = Tokens(grid.tokens, lambda: self._packed(picture), grid)
            self._pictures[id(picture)] = (picture, tokens)  # the picture is held, so its id stays its own
        return self._pictures[id(picture)][1]

    def latents(self, picture: Image.Image) -> torch.Tensor:
        """Normalised latents (1, Z, h, w)."""
        from qwenimage_core.images import to_tensor
        from qwenimage_core.models.vae_tiling import encode_tiled

        vae = self._components["vae"][0].module
        weight = next(vae.parameters())
        pixels_1CHW = to_tensor(picture, self._backbone.image_channels).to(weight)
        return vae.encode(pixels_1CHW) if self._tile is None else encode_tiled(vae, pixels_1CHW, *self._tile)

    def _packed(self, picture: Image.Image) -> torch.Tensor:
        from qwenimage_core.latents import pack

        return pack(self.latents(picture)[:, None], self._backbone.patch_size)
