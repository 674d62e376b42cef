"""`qwenimage controlnet new`: a ControlNet to train from the start, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwenimage_core.errors import RequestError

BLOCKS, WIDTH, CHANNELS, MASK_CHANNELS = 60, 3072, 64, 4  # of the published model

app = typer.Typer(help="Begin blockwise ControlNets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `new` a sub-command, though it is the only one."""


@app.command()
def new(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, .safetensors")],
    inpaint: Annotated[
        bool, typer.Option("--inpaint", help="one that reads a mask beside the picture")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="model that it is for: a folder in hub layout, or tiny (default: Qwen-Image)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="seed of the layers that do not begin at zero")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
) -> None:
    """Write a ControlNet that adds nothing yet: what it reads and adds through begins at zero.

    Train it with `qwenimage train --trainable_models blockwise_controlnet`, its file in --model_paths.
    """
    if output.suffix != ".safetensors":
        raise RequestError(
            "A ControlNet is written as safetensors.", got=output.name, expected="*.safetensors"
        )
    if output.exists() and not overwrite:
        raise RequestError(
            "The file is there already.", got=output, mend="choose another name, or add --overwrite"
        )
    import torch

    from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet

    blocks, width, channels, mask = BLOCKS, WIDTH, CHANNELS, MASK_CHANNELS
    if model is not None:
        from qwenimage_core import QwenImagePipeline

        backbone = QwenImagePipeline.from_pretrained(model, device="cpu").backbone
        blocks, width, channels = backbone.blocks, backbone.token_width, backbone.packed_channels
        mask = backbone.patch_size**2
    net = new_controlnet(blocks=blocks, width=width, channels=channels + (mask if inpaint else 0), seed=seed)
    print(save_controlnet(net.to(torch.bfloat16), output))
