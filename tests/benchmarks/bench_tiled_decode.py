"""Decoding 2048 x 2048 in tiles, with the full-size VAE in float32: its memory over that of the whole picture, and
whether the borders of the tiles show.

Each side runs in a process of its own, which keeps an eye on its anonymous memory. The weights are random, scaled to a
picture's contrast. A seam is a step between two neighbouring pixels, on both sides of a tile's border, that the whole
picture does not have.

A run takes a quarter of an hour and 10 GB: `python tests/benchmarks/bench_tiled_decode.py [SIDE]`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timing import finish, machine, report

from qwenimage_core.memory.measure import in_use, peak
from qwenimage_core.models.vae import QwenImageVAE, VAEConfig
from qwenimage_core.models.vae_tiling import decode_tiled, spans

SIDE = 2048
TILE, STRIDE = 64, 48  # latent pixels; a tile of the default 128 is a quarter of this picture
MEMORY, SEAM = 0.1, 2.0  # a tenth; steps of 255
CPU = torch.device("cpu")


@torch.no_grad()
def decode(way: str, side: int, file: Path) -> None:
    """In a process of its own: the picture and its peak of memory, as a safetensors file."""
    torch.manual_seed(0)
    vae = QwenImageVAE(VAEConfig()).eval()
    z_1Zhw = torch.randn(1, 16, side // 8, side // 8)
    before, begun = in_use(CPU) or 0, time.perf_counter()
    with peak(CPU) as most:
        whole = way == "whole"
        x_1CHW = vae.decode(z_1Zhw) if whole else decode_tiled(vae, z_1Zhw, TILE, STRIDE)
    facts = torch.tensor([(most.bytes or 0) - before, time.perf_counter() - begun])
    save_file({"picture": x_1CHW[0].contiguous(), "facts": facts}, file)


def seams(tiled_CHW: torch.Tensor, whole_CHW: torch.Tensor) -> float:
    """The largest step across a border of a tile, the mean along that border, of 255."""
    scale = 127.5 / (2 * whole_CHW.std())  # two standard deviations fill the range of a picture
    error_CHW = (tiled_CHW - whole_CHW) * scale
    length = whole_CHW.shape[-1] // 8
    borders = {at * 8 for span in spans(length, TILE, STRIDE) for at in span if 0 < at < length}
    steps = [
        (error_CHW.select(axis, at) - error_CHW.select(axis, at - 1)).abs().mean()
        for at in borders
        for axis in (1, 2)
    ]
    return float(max(steps))


def main(side: int) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for way in ("tiled", "whole"):
            file = Path(folder) / f"{way}.safetensors"
            subprocess.run([sys.executable, __file__, str(side), way, str(file)], check=True)
            results[way] = load_file(file)
    tiled, whole = results["tiled"], results["whole"]
    (tiled_bytes, tiled_seconds), (bytes_, seconds) = tiled["facts"].tolist(), whole["facts"].tolist()
    difference = (tiled["picture"] - whole["picture"]).abs().mean() * 127.5 / (2 * whole["picture"].std())
    finish(
        report(
            f"peak of decoding {side} x {side} in tiles of {TILE}, stride {STRIDE}, over whole",
            tiled_bytes / bytes_,
            MEMORY,
            f"{tiled_bytes / 2**30:.2f} GiB over {bytes_ / 2**30:.2f} GiB; {tiled_seconds:.0f} s over {seconds:.0f} s",
        ),
        report(
            "largest seam, of 255",
            seams(tiled["picture"], whole["picture"]),
            SEAM,
            f"mean difference of all pixels {float(difference):.2f}",
        ),
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        decode(sys.argv[2], int(sys.argv[1]), Path(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else SIDE)
