"""`qwenimage i2l`: pictures to a LoRA file, without the transformer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenimage_core import ModelConfig
from qwenimage_core.errors import RequestError
from qwenimage_core.images import open_picture
from qwenimage_i2l.components import BIAS_FILE, COMPONENTS, DINOV3, PUBLISHED, SIGLIP2, network_kind
from qwenimage_i2l.fields import BIAS, MODES, as_mode, networks_of
from qwenimage_i2l.pictures import check_pictures

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from qwenimage_core.loading.components import Component

DTYPES = ("float32", "bfloat16", "float16")
FORMAT = "diffsynth"  # transformer_blocks.N.X.lora_A.default.weight, which both peers load


def i2l(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="pictures to make the LoRA of")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the file to write")],
    mode: Annotated[str, typer.Option("--mode", help=MODES)] = "style",
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--weights",
            metavar="PATH",
            help="weights of an encoder or a network, instead of the published ones (may be repeated)",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="tokenizer, instead of the published one"),
    ] = None,
    bias: Annotated[
        Path | None,
        typer.Option("--bias", metavar="FILE", help="bias LoRA, instead of the published one"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help=f"{', '.join(DTYPES)} (default: float32 on a CPU, else bfloat16)"),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="where to compute (default: the accelerator that is there)")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace FILE if it exists")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Make a LoRA file of pictures: of their style, or of what they show."""
    _check_output(output, overwrite)
    mode = _checked(as_mode, mode)
    if BIAS not in mode.split("+") and bias is not None:
        raise RequestError(f"--bias does nothing in the mode {mode}.", mend=f"say --mode {mode}+{BIAS}")
    if dtype not in (None, *DTYPES):
        raise RequestError("--dtype is none that models are run in.", got=dtype, expected=", ".join(DTYPES))
    pictures = [_checked(open_picture, path) for path in images]
    check_pictures(pictures)

    from qwenimage_core.adapters.convert import save_lora
    from qwenimage_i2l.lora import make_lora, read_bias

    networks = networks_of(mode)
    given_bias = ModelConfig(path=bias) if bias else ModelConfig(**BIAS_FILE)
    parts = Parts(networks, [ModelConfig(path=path) for path in weights or ()], tokenizer, dtype, device)
    lora = make_lora(
        pictures,
        networks,
        component=parts.component,
        read=parts.read,
        bias=read_bias(given_bias) if BIAS in mode.split("+") else None,
    )
    save_lora(lora, output, FORMAT)
    rank, count = next(iter(lora.modules.values())).rank, len(pictures)
    if as_json:
        facts = {"output": str(output), "mode": mode, "pictures": count, "layers": len(lora.modules)}
        print(json.dumps(facts | {"rank": rank}))
    else:
        some = "1 picture" if count == 1 else f"{count} pictures"
        print(f"{output}: {len(lora.modules)} layers of rank {rank}, {mode} of {some}")


class Parts:
    """The components of one call: given files first, published ones for what is left. One is in memory at a time."""

    def __init__(
        self,
        networks: Sequence[str],
        given: Sequence[ModelConfig],
        tokenizer: Path | None,
        dtype: str | None,
        device: str,
    ) -> None:
        import torch

        from qwenimage_core.loading.components import find_components
        from qwenimage_core.loading.recognise import TEXT_ENCODER
        from qwenimage_i2l.check import check_components, check_text
        from qwenimage_i2l.lora import TEMPLATE, TEXT_SIDES

        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        place = torch.device(device) if device else found or torch.device("cpu")
        number = getattr(torch, dtype or ("float32" if place.type == "cpu" else "bfloat16"))
        homes = PUBLISHED | {TEXT_ENCODER.kind: TEXT_ENCODER.published}
        reads_text = any(network in TEXT_SIDES for network in networks)
        needed = [SIGLIP2, DINOV3, *map(network_kind, networks)]
        needed += [TEXT_ENCODER.kind] if reads_text else []
        how: dict[str, Any] = {"dtype": number, "device": place, "specs": (TEXT_ENCODER, *COMPONENTS)}
        components = find_components(given, **how, needed=())
        if idle := sorted(set(components) - set(needed)):
            raise RequestError(
                f"--weights has components that play no part: {', '.join(idle)}.",
                expected=", ".join(needed),
                mend="leave them out, or choose another --mode",
            )
        rest = [homes[kind] for kind in needed if kind not in components]
        published = [ModelConfig(model_id=home[0], origin_file_pattern=home[1]) for home in rest if home]
        components |= find_components(published, **how, needed=())
        check_components(components, networks)
        self._components, self._template = components, TEMPLATE
        self._open: list[Component] = []
        if reads_text:
            from qwenimage_core.assemble import prompt_encoder

            encoder = components[TEXT_ENCODER.kind][0]
            self._prompts = prompt_encoder(encoder, ModelConfig(path=tokenizer) if tokenizer else None)
            self._open.append(encoder)  # let go when the first component is asked for
            for network in networks:
                net = components[network_kind(network)][0].skeleton
                check_text(network, net, encoder.skeleton.width, self._count)
        elif tokenizer is not None:
            raise RequestError("--tokenizer does nothing: no network of this mode reads text.")

    def component(self, kind: str) -> Any:
        """The module of this kind; the one before is let go."""
        while self._open:
            self._open.pop().release()
        self._open.append(self._components[kind][0])
        return self._components[kind][0].module

    def read(self, picture: Image.Image) -> Tensor:
        """(1, T, W): what the text encoder makes of a picture."""
        return self._prompts.encode("", self._template, [picture])[None]

    def _count(self, picture: Image.Image) -> int:
        return self._prompts.prepare("", self._template, [picture]).tokens


def _checked(convert: Any, value: Any) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise RequestError("A LoRA is written as safetensors.", got=output.name, expected="NAME.safetensors")
    if not output.parent.is_dir():
        raise RequestError(f"There is no folder {output.parent}.", mend="make it first")
    if output.exists() and not overwrite:
        raise RequestError(f"{output} exists.", mend="choose another name, or say --overwrite")
