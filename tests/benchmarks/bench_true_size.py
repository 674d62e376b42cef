"""A whole generation by a model of the published size, on a small machine: memory, and bytes read from disk.

`python tests/benchmarks/bench_true_size.py --blocks 60 --layers 28 --limit 7` writes synthetic weights of the published
shapes in eight bits (20 GB for the transformer, 8 GB for the text encoder) into a temporary folder (`--folder` for
another disk), draws 256 x 256 in 2 guided steps with `vram_limit` at 7 GiB and everything on disk between uses, and
removes the weights. Without arguments 4 blocks and 4 layers at 4 GiB, for the benchmark session. Tensors of one shape
have the same values: what is read and computed is of true size, what comes out is noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timing import finish, machine, report
from torch import nn

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.memory.measure import peak
from qwenimage_core.models.text_encoder import PUBLISHED_CONFIG, TextEncoder
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_core.models.vae import VAEConfig, published_shapes
from qwenimage_core.testing.tokenizer import write_tokenizer

GIB = 2**30
MEMORY, READ = 8.0, 0.68
ON_DISK = {f"{state}_{part}": "disk" for state in ("offload", "onload") for part in ("dtype", "device")}


def write(folder: Path, name: str, shapes: Mapping[str, Any], config: Mapping[str, Any], shard: str) -> None:
    """Shards of one block each, in eight bits but for vectors; equal shapes share their values."""
    target = folder / name
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config))
    groups: dict[str, dict[str, torch.Tensor]] = {}
    known: dict[tuple[int, ...], torch.Tensor] = {}
    for tensor, shape in shapes.items():
        size = tuple(shape)
        if size not in known:
            wide = torch.ones(size) if len(size) == 1 else torch.randn(size) * (size[1] ** -0.5)
            known[size] = wide.to(torch.bfloat16 if len(size) == 1 else torch.float8_e4m3fn)
        number = tensor.removeprefix(shard).split(".")[0] if tensor.startswith(shard) else "rest"
        groups.setdefault(number, {})[tensor] = known[size].clone()
    for at, tensors in enumerate(groups.values(), 1):
        save_file(tensors, target / f"model-{at:05d}-of-{len(groups):05d}.safetensors")


def meta_shapes(build: Any) -> dict[str, Any]:
    with torch.device("meta"):
        module: nn.Module = build()
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def write_model(folder: Path, blocks: int, layers: int) -> None:
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    added = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["added_tokens"]
    image_id = next(token["id"] for token in added if token["content"] == "<|image_pad|>")
    text = {**PUBLISHED_CONFIG, "image_token_id": image_id}
    text["text_config"] = {**text["text_config"], "num_hidden_layers": layers}
    config = {"num_layers": blocks, "_class_name": "QwenImageTransformer2DModel"}
    transformer = meta_shapes(lambda: QwenImageTransformer(TransformerConfig(num_layers=blocks)))
    write(folder, "transformer", transformer, config, "transformer_blocks.")
    write(folder, "text_encoder", meta_shapes(lambda: TextEncoder(text, vision=False)), text, "model.layers.")
    vae = VAEConfig()
    write(folder, "vae", published_shapes(vae), vae.to_dict(), "none.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--limit", type=float, default=4.0, help="vram_limit in GiB")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    print(machine(), f"; {options.blocks} blocks, {options.layers} text encoder layers")
    with tempfile.TemporaryDirectory(dir=options.folder) as where:
        folder = Path(where)
        write_model(folder, options.blocks, options.layers)
        print(f"weights written: {sum(f.stat().st_size for f in folder.rglob('*.safetensors')) / 1e9:.1f} GB")
        device = torch.device("cpu")
        with peak(device) as most:
            pipe = QwenImagePipeline.from_pretrained(
                model_configs=[
                    ModelConfig(path=folder / part, **ON_DISK)
                    for part in ("transformer", "text_encoder", "vae")
                ],
                tokenizer_config=ModelConfig(path=folder / "tokenizer"),
                device="cpu",
                vram_limit=options.limit,
            )
            blocks = pipe.components["transformer"][0].blocks
            read: list[int] = []
            start = time.perf_counter()
            pipe(
                "a red circle",
                height=256,
                width=256,
                num_inference_steps=2,
                seed=0,
                step_callback=lambda _: read.append(blocks.bytes_read),
            )
            took = time.perf_counter() - start
        stored = pipe.components["transformer"][0].checkpoint.nbytes
        print(f"the generation took {took:.0f} s")
        assert most.bytes is not None, "this system does not say what memory is in use"
        finish(
            report("peak of anonymous memory, GiB", most.bytes / GIB, MEMORY),
            report(
                "bytes read in the second step over all of the transformer's",
                (read[1] - read[0]) / stored,
                READ,
            ),
        )


if __name__ == "__main__":
    main()
