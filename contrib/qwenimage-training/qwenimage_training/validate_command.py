"""`qwenimage validate`: a recipe's example with trained weights, and base beside trained on one sheet."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw, ImageOps

from qwenimage_core.cli.generate import Prompt, dashed
from qwenimage_core.cli.main import Early
from qwenimage_core.cli.options import field_options, with_fields
from qwenimage_core.cli.output import Targets, save
from qwenimage_core.cli.session import (
    DTYPES,
    Device,
    Dtype,
    Json,
    NoPlugins,
    Output,
    Overwrite,
    PluginFiles,
    Session,
    progress,
)
from qwenimage_core.errors import RequestError
from qwenimage_core.picture_files import check_target
from qwenimage_core.registry import PluginRegistry
from qwenimage_training.data.sheet import save_sheet

NAME = "validate"
SIDE, GAP, LABEL = 384, 12, 18  # pixels of the sheet
File = Path | None


def _own(name: str, help: str) -> Any:
    return typer.Option(name, help=help, metavar="", show_default=False, rich_help_panel="What to look at")


def add_validate(app: typer.Typer) -> None:
    """Its options are the fields of the request, which are known when the plugins are: so they are read inside."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(NAME, context_settings=settings)
    def validate(context: typer.Context) -> None:
        """Draw a recipe's example with trained weights, and what training began from beside it."""
        early = Early.of([NAME, *context.args])
        registry = PluginRegistry.discover(early.plugins, disable_all=early.no_plugins)
        registry.load_all()
        owners = {f: f"Plugin {p.name} {p.version}" for p in registry.loaded for f in p.fields}
        options = field_options(registry.request_model(), owners)
        inner = typer.Typer(add_completion=False)
        inner.command(NAME, context_settings={"token_normalize_func": dashed})(
            with_fields(_validate(registry), options)
        )
        typer.main.get_command(inner).main(
            args=context.args, prog_name=f"qwenimage {NAME}", standalone_mode=False
        )


def _validate(registry: PluginRegistry) -> Any:
    def validate(  # noqa: PLR0913  one argument an option
        text: Prompt = None,
        *,
        recipe: Annotated[str | None, _own("--recipe", "the recipe that was trained")] = None,
        lora: Annotated[File, _own("--lora", "a LoRA that training gave")] = None,
        full: Annotated[File, _own("--full", "full weights that training gave")] = None,
        output: Output = None,
        overwrite: Overwrite = False,
        dtype: Dtype = None,
        device: Device = None,
        plugin: PluginFiles = None,
        no_plugins: NoPlugins = False,
        as_json: Json = False,
        **fields: Any,
    ) -> None:
        """Draw a recipe's example (or what the options of the request say) with trained weights.

        Writes the picture, and NAME-beside.png: what training began from beside what it gave.
        """
        import torch

        from qwenimage_core.recipes import find_recipe
        from qwenimage_training.trained_pictures import Validation, chosen, difference

        begun = time.perf_counter()
        if recipe is None:
            raise RequestError("Nothing says what was trained.", mend="add --recipe NAME")
        if dtype not in (None, *DTYPES):
            raise RequestError(
                "--dtype is none that models are run in.", got=dtype, expected=", ".join(DTYPES)
            )
        if fields.get("output_type", "pil") != "pil":
            raise RequestError("Validation draws pictures.", got=fields["output_type"], expected="pil")
        if text is not None:
            fields["prompt"] = text
        mode, file = chosen(lora, full)
        precision = getattr(torch, dtype) if dtype else None
        look = Validation(find_recipe(recipe, registry), registry, mode, file, fields, precision, device)
        target = output or Path(f"{file.stem}-{recipe}.png")
        sheet = target.with_name(f"{target.stem}-beside.png")
        check_target(sheet, overwrite=overwrite)
        pipe = look.base()
        before = _flat(look.draw(pipe, progress).images)
        pipe = look.trained(pipe)
        found = look.draw(pipe, progress)
        after = _flat(found.images)
        targets = Targets.of(target, [found.seeds[0]] * len(after), kind="pil", overwrite=overwrite)
        session = _session(look, pipe)
        written = []
        for number, picture in enumerate(after):
            path = targets.path(number + 1, found.seeds[0])
            save(picture, path, session.describe(found.plans[0], found.seeds[0], number), overwrite=overwrite)
            written.append(str(path))
        save_sheet(beside(before, after), sheet)
        changed = difference(before, after)
        if as_json:
            seconds = round(time.perf_counter() - begun, 3)
            values = {"recipe": recipe, "mode": mode, "pictures": written, "sheet": str(sheet)}
            print(json.dumps({**values, "difference": round(changed, 4), "seconds": seconds}))
            return
        print(*written, sheet, sep="\n")
        print(
            f"mean difference {changed:.2f} of 255"
            if changed
            else "no difference: the weights change nothing"
        )

    return validate


def _session(look: Any, pipe: Any) -> Session:
    """What a record says of the weights: their digests. No option of `generate` opens just these."""
    from qwenimage_core.loading.checkpoint import Checkpoint
    from qwenimage_core.metadata import AdapterUsed, ModelUsed

    model = ModelUsed(
        source=None,
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=str(pipe.device),
    )
    if look.mode == "full":
        return Session(pipe, model, ())
    digest = Checkpoint.open([look.file]).digest()
    used = AdapterUsed(name=look.file.stem, source=str(look.file), digest=digest, strength=1.0)
    return Session(pipe, model, (used,))


def _flat(images: list[Any]) -> list[Image.Image]:
    """Pictures one by one; layers of a picture come as a list."""
    return [one for image in images for one in (image if isinstance(image, list) else [image])]


def beside(before: list[Image.Image], after: list[Image.Image]) -> Image.Image:
    """A line for each picture: before on the left, after on the right."""
    width, height = 2 * SIDE + 3 * GAP, LABEL + GAP + len(after) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, pictures) in enumerate((("before training", before), ("trained", after))):
        x = GAP + column * (SIDE + GAP)
        draw.text((x, GAP // 2), label, fill="black")
        for line, picture in enumerate(pictures):
            small = ImageOps.contain(picture, (SIDE, SIDE)).convert("RGBA")
            sheet.paste(small, (x, LABEL + GAP + line * (SIDE + GAP)), small)
    return sheet
