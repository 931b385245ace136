"""Multiply one large matrix by batches of growing size, and record how long it takes.

    python -m tools.one_matrix --out notebooks/figures/matrix.json

Notebook 03 draws the file beside its own measurement.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .measuring import describe_machine, measure_bandwidth, time_work, write_json

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def measure(side: int, counts: Sequence[int] = COUNTS, repeats: int = 9) -> dict:
    """Return the bandwidth of a copy, and milliseconds by batch size."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    milliseconds = {}
    for count in counts:
        rows = torch.ones(count, side).to(matrix)
        seconds = time_work(partial(torch.matmul, rows, matrix.T), repeats, device)
        milliseconds[str(count)] = [1000 * one for one in seconds]
    return {
        **describe_machine(),
        "matrix": f"{side} x {side}, {str(dtype).removeprefix('torch.')}",
        "bytes_per_second": measure_bandwidth(device),
        "milliseconds": milliseconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.one_matrix")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=16_384)
    options = parser.parse_args(arguments)
    record = measure(options.side)
    write_json(options.out, record)
    for count, values in record["milliseconds"].items():
        print(f"{count:>4}: {statistics.median(values):.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
