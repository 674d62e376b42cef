"""What can only be told with the loaded components at hand. Reads their headers, never their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import RequestError
from qwenimage_i2l.components import DINOV3, PUBLISHED, SIGLIP2, network_kind
from qwenimage_i2l.lora import TEMPLATE, TEXT_SIDES

if TYPE_CHECKING:
    from PIL import Image

    from qwenimage_core.context import Context
    from qwenimage_core.loading.components import Component


def check_request(ctx: Context) -> None:
    """Raises RequestError for components that are missing, or of models that do not belong together."""
    networks = ctx.request.i2l_networks
    check_components(ctx.components, networks)

    def count(picture: Image.Image) -> int:
        return ctx.encode_prompt("", TEMPLATE, [picture]).count

    encoder = ctx.components["text_encoder"][0].skeleton
    for network in networks:
        net = ctx.components[network_kind(network)][0].skeleton
        check_text(network, net, encoder.width, count)
        expected = (ctx.backbone.blocks, ctx.backbone.token_width)
        if (net.depth, net.width) != expected:
            raise RequestError(
                f"The {network} network of i2L makes LoRAs for another transformer.",
                got=f"{net.depth} blocks of width {net.width}",
                expected=f"{expected[0]} blocks of width {expected[1]}",
            )


def check_components(components: Mapping[str, Sequence[Component]], networks: Sequence[str]) -> None:
    """Both picture encoders and every network are there, and the networks read what the encoders give."""
    needed = (SIGLIP2, DINOV3, *map(network_kind, networks))
    if absent := [kind for kind in needed if not components.get(kind)]:
        lines = [
            f'ModelConfig(model_id="{PUBLISHED[kind][0]}", origin_file_pattern="{PUBLISHED[kind][1]}")'
            for kind in absent
        ]
        raise RequestError(
            f"To make a LoRA of pictures (i2l_mode {'+'.join(networks)}), components are missing: {', '.join(absent)}.",
            got=", ".join(sorted(components)) or "none",
            mend="add to model_configs:\n            " + "\n            ".join(lines),
        )
    width = sum(components[kind][0].skeleton.config.hidden_size for kind in (SIGLIP2, DINOV3))
    for network in networks:
        net = components[network_kind(network)][0].skeleton
        if net.embedding != width:
            raise RequestError(
                f"The {network} network of i2L belongs to other picture encoders.",
                got=f"{SIGLIP2} and {DINOV3} give {width} numbers together",
                expected=f"{net.embedding}",
            )


def check_text(network: str, net: Any, width: int, count: Callable[[Image.Image], int]) -> None:
    """A network that reads text gets as many tokens, as wide, as it was trained with. `count` is for one picture."""
    if network not in TEXT_SIDES:
        return
    from PIL import Image

    side = TEXT_SIDES[network]
    found = (count(Image.new("RGB", (side, side))), width)
    if found != (net.tokens, net.text_width):
        raise RequestError(
            f"The {network} network of i2L belongs to another text encoder, tokenizer or picture processor.",
            got=f"{found[0]} tokens of width {found[1]} for a picture of {side} x {side}",
            expected=f"{net.tokens} tokens of width {net.text_width}",
        )
