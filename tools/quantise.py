"""Write a 4-bit copy of a model in GPTQ's layout, which vLLM loads as it is.

    python -m tools.quantise MODEL DIRECTORY

Each weight is rounded to the nearest of 16 values in its group of `GROUP`. GPTQ proper
chooses the rounding by data; the files, the kernels and so the speed are the same.
Embeddings, norms and the output layer stay as they are.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.internals.engine.plan import resolve_model_path

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
BITS = 4
PER_WORD = 32 // BITS
ZERO = 2 ** (BITS - 1)
# GPTQ's first file format stores the zero point less one, in each 4 bits of a word.
ZEROS_WORD = int.from_bytes(bytes([0x11 * (ZERO - 1)] * 4), signed=True)


def quantise(weight: "Tensor", group: int = GROUP) -> "dict[str, Tensor]":
    """Return the four tensors that GPTQ stores for one `(rows, columns)` matrix.

    `qweight` is `(columns / 8, rows)`, `scales` is `(columns / group, rows)`. Raises
    `ValueError` if the columns can't be divided into groups, or the rows into words.
    """
    import torch

    rows, columns = weight.shape
    if columns % group or rows % PER_WORD:
        raise ValueError(f"{rows} x {columns} can't be stored in groups of {group}")
    groups = weight.float().reshape(rows, -1, group)
    scales = (groups.abs().amax(-1, keepdim=True) / (ZERO - 1)).clamp(min=1e-8)
    values = (groups / scales).round().clamp(-ZERO, ZERO - 1).to(torch.int32) + ZERO
    words = values.reshape(rows, -1, PER_WORD)
    packed = torch.zeros_like(words[..., 0])
    for place in range(PER_WORD):
        packed |= words[..., place] << (BITS * place)
    return {
        "qweight": packed.T.contiguous(),
        "qzeros": torch.full(
            (columns // group, rows // PER_WORD), ZEROS_WORD, dtype=torch.int32
        ),
        "scales": scales[..., 0].T.to(weight.dtype).contiguous(),
        "g_idx": (torch.arange(columns) // group).int(),
    }


def write_quantised(model: str, directory: Path, group: int = GROUP) -> Path:
    """Write the copy to `directory` and return it; work on the GPU where one is."""
    import torch
    from safetensors.torch import load_file, save_file

    source = Path(resolve_model_path(model))
    directory.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    places, total = {}, 0
    for file in sorted(source.iterdir()):
        if file.suffix != ".safetensors":
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copy(file, directory)
            continue
        tensors = {}
        for name, tensor in load_file(file, device=device).items():
            if name.endswith("_proj.weight"):
                layer = name.removesuffix("weight")
                parts = quantise(tensor, group).items()
                tensors |= {f"{layer}{part}": value.cpu() for part, value in parts}
            else:
                tensors[name] = tensor.cpu()
        save_file(tensors, directory / file.name, {"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": BITS,
        "group_size": group,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return directory


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.quantise")
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--group", type=int, default=GROUP, help="weights per scale")
    options = parser.parse_args(arguments)
    write_quantised(options.model, options.directory, options.group)
    return 0


if __name__ == "__main__":
    sys.exit(main())
