"""Whether a checkpoint fits the module that its config describes: names, shapes and kinds of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.recognise import ComponentSpec


def fit(spec: ComponentSpec, checkpoint: Checkpoint, skeleton: nn.Module) -> dict[str, str]:
    """Module name -> published name of every tensor. Raises LoadError that lists what does not fit."""
    expected = skeleton.state_dict()
    found: dict[str, str] = {}
    unexpected, wrong = [], []
    for published, info in checkpoint.tensors.items():
        name = published if spec.rename is None else spec.rename(published)
        if name is None:
            continue
        if name not in expected or name in found:
            unexpected.append(published if name not in found else f"{published} (as {found[name]})")
            continue
        found[name] = published
        stored = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        if difference := _difference(spec, published, stored, expected[name]):
            wrong.append(f"{published} {difference}")
    missing = [name for name in expected if name not in found]
    if missing or unexpected or wrong:
        raise _misfit(spec, checkpoint, skeleton, missing, unexpected, wrong)
    if empty := [name for name, buffer in skeleton.named_buffers() if name not in found and buffer.is_meta]:
        raise LoadError(
            f"The {spec.name} has buffers that no file fills.",
            got=", ".join(empty[:5]),
            mend="compute them when they are needed, or keep them as plain attributes",
        )
    return found


def _difference(spec: ComponentSpec, published: str, stored: Tensor, wanted: Tensor) -> str | None:
    if wanted.is_floating_point() != stored.is_floating_point():
        return f"is {stored.dtype} instead of floating point"
    try:
        converted = stored if spec.convert is None else spec.convert(published, stored)
    except (RuntimeError, IndexError, ValueError):
        return f"is {tuple(stored.shape)}, which cannot become {tuple(wanted.shape)}"
    if converted.shape != wanted.shape:
        return f"is {tuple(converted.shape)} instead of {tuple(wanted.shape)}"
    return None


def _misfit(
    spec: ComponentSpec,
    checkpoint: Checkpoint,
    skeleton: nn.Module,
    missing: list[str],
    unexpected: list[str],
    wrong: list[str],
) -> LoadError:
    kinds = {"missing": missing, "unexpected": unexpected, "wrong": wrong}
    got = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in kinds.items()
        if names
    )
    if checkpoint.config is None:
        mend = "put the config.json of this model beside its weights"
    else:
        mend = "check that config.json and weights are of one model, and that the files are complete"
    return LoadError(
        f"The weights in {checkpoint.files[0]} do not fit the {spec.name} that its config describes.",
        got=got,
        expected=f"{len(skeleton.state_dict())} tensors of the shapes that {type(skeleton).__name__} has",
        mend=mend,
    )
