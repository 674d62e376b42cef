"""What a hook sees: one frozen object with the request, the backbone's description, and the encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import RequestError
from qwenimage_core.values import BranchName, TransformerOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from PIL import Image

    from qwenimage_core.encoders import Encoders
    from qwenimage_core.loading.components import Component
    from qwenimage_core.models.backbone import BackboneDescription
    from qwenimage_core.values import Tokens


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to every hook of a run.

    `request` holds all fields as attributes, the core's and the plugins'. `branch` is set where a hook is called once
    for each branch, `options` and `sigmas` (steps + 1 noise levels, the last 0) from `latent_concat` on.
    The encoders give `Tokens`: planned at once, computed when a picture is made.
    """

    request: Any
    prompt: str
    backbone: BackboneDescription
    encoders: Encoders
    components: Mapping[str, Sequence[Component]]
    branch: BranchName | None = None
    options: TransformerOptions = field(default_factory=TransformerOptions)
    sigmas: tuple[float, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the negative branch runs."""
        return bool(self.request.guided)

    @property
    def steps(self) -> int:
        return int(self.request.num_inference_steps)

    def encode_prompt(
        self, prompt: str, template: str | None = None, pictures: Sequence[Image.Image] = ()
    ) -> Tokens:
        """Text tokens of `prompt` in `template` (the backbone's own if None), with pictures for its picture slots."""
        return self.encoders.encode_prompt(prompt, template, tuple(pictures))

    def encode_picture(self, picture: Image.Image) -> Tokens:
        """Image tokens of a picture as it is (sides multiples of 16), with their grid."""
        return self.encoders.encode_picture(picture)

    def latents(self, picture: Image.Image) -> torch.Tensor:
        """Normalised latents (1, Z, H/8, W/8) of a picture, computed now: call it inside a `Tokens` computation."""
        return self.encoders.latents(picture)

    def component(self, name: str, index: int = 0) -> Any:
        """The module of a loaded component, read from disk on first use.

        Raises RequestError when no such component was given to `from_pretrained`.
        """
        found = self.components.get(name, ())
        if index >= len(found):
            raise RequestError(
                f"The request needs the component {name!r}" + (f" number {index}." if index else "."),
                got=f"{len(found)} loaded; components here: {sorted(self.components)}",
                mend=f"give its files to from_pretrained as one more ModelConfig in model_configs ({name})",
            )
        return found[index].module
