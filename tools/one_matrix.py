"""Multiply one large matrix by batches of growing size, and record how long it takes.

    python -m tools.one_matrix --out notebooks/figures/matrix.json

Notebook 03 draws the file beside its own measurement. Needs PyTorch and nothing else.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def time_work(work: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of each repeat, after a warm-up."""
    milliseconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds[1:]


def measure(side: int, counts: Sequence[int] = COUNTS, repeats: int = 9) -> dict:
    """Bandwidth of a copy, and milliseconds by batch size, on the GPU where one is."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    matrix = torch.ones(side, side, dtype=dtype, device="cuda" if on_gpu else "cpu")
    copy = torch.empty_like(matrix)
    fastest = min(time_work(partial(copy.copy_, matrix), repeats))
    rows = {count: torch.ones(count, side).to(matrix) for count in counts}
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "matrix": f"{side} x {side}, {str(dtype).removeprefix('torch.')}",
        "bytes_per_second": 1000 * 2 * matrix.nbytes / fastest,
        "milliseconds": {
            str(count): time_work(partial(torch.matmul, rows[count], matrix.T), repeats)
            for count in counts
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.one_matrix")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=16_384)
    options = parser.parse_args(arguments)
    record = measure(options.side)
    options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    for count, values in record["milliseconds"].items():
        print(f"{count:>4}: {statistics.median(values):.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
