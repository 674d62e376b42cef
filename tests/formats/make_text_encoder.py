"""Write text_encoder.gguf: a tiny text encoder as llama.cpp's converter writes it, with the gguf package's own names.

    pip install gguf==0.19.0
    python tests/formats/make_text_encoder.py

Matrices are in Q8_0, the rest in float32, as in published files. tests/formats/test_text_encoder.py makes the same
weights again and compares.
"""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf.quants import quantize

from tests.formats.weights import CONFIG, text_encoder_weights

FILE = Path(__file__).with_name("text_encoder.gguf")
LAYERS = CONFIG["num_hidden_layers"]


def main() -> None:
    writer = gguf.GGUFWriter(FILE, "qwen2vl")
    writer.add_block_count(LAYERS)
    writer.add_token_list(
        ["<|im_start|>", "红"]
    )  # published files carry their tokenizer, which is not used here
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, LAYERS)
    for name, tensor in text_encoder_weights().items():
        given = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert given is not None, name
        if tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(given, quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(given, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
