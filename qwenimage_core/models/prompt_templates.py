"""The texts a prompt is set into before it is encoded, as published. No torch.

What the encoder makes of the part before the user's turn is dropped: `prefix` is that part. What a picture
becomes is the marker of the vision tower; the tokenizer widens its middle token to as many as the picture
needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenimage_core.errors import RequestError

IMAGE_TOKEN = "<|image_pad|>"
PICTURE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """`picture` stands before the prompt once a picture, `{number}` in it counting from 1; `pictures` are the
    least and the greatest number of pictures (None: no limit). `max_tokens` bounds what is kept of the
    encoding."""

    name: str
    system: str
    picture: str = PICTURE
    pictures: tuple[int, int | None] = (0, 0)
    max_tokens: int | None = None

    @property
    def prefix(self) -> str:
        return f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n"

    def render(self, prompt: str, pictures: int = 0) -> str:
        """The whole text. The prompt is taken as it is: braces in it mean nothing."""
        least, most = self.pictures
        if pictures < least or (most is not None and pictures > most):
            some = (
                f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
            )
            raise RequestError(
                f"the prompt template {self.name!r} does not take this number of pictures",
                got=pictures,
                expected=some,
            )
        marks = "".join(self.picture.format(number=number + 1) for number in range(pictures))
        return self.prefix + marks + prompt + SUFFIX


_EDIT_SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate."
)

T2I = PromptTemplate(
    name="t2i",
    system="Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background:",
    max_tokens=4096,
)
EDIT = PromptTemplate(name="edit", system=_EDIT_SYSTEM, pictures=(1, 1))
EDIT_PLUS = PromptTemplate(
    name="edit_plus", system=_EDIT_SYSTEM, picture=f"Picture {{number}}: {PICTURE}", pictures=(1, None)
)

TEMPLATES = {template.name: template for template in (T2I, EDIT, EDIT_PLUS)}


def template_of(template: PromptTemplate | str) -> PromptTemplate:
    """The template itself, or the published one of that name."""
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise RequestError("there is no such prompt template", got=template, expected=", ".join(TEMPLATES))
    return TEMPLATES[template]
