"""Name the machine, and time what it does: what the other measurements begin with.

Nothing here knows engines. Needs PyTorch where something is timed.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device
from helpers.internals.machine.devices import list_gpus
from helpers.internals.machine.versions import find_version
from helpers.notebook import is_noise

PACKAGES = ("unsloth", "vllm", "torch", "transformers", "bitsandbytes")
# Larger than the caches of any processor or GPU.
COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}


def describe_machine() -> dict[str, Any]:
    """Return "date", "device" and "versions": what a published figure has to name."""
    found = {package: find_version(package) for package in PACKAGES}
    versions = {name: str(version) for name, version in found.items() if version}
    on_gpu = detect_device() == "cuda"
    name = list_gpus()[0].name if on_gpu else f"CPU, {os.cpu_count()} cores"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "versions": {"python": platform.python_version(), **versions},
    }


def describe_model(model: str) -> str:
    """Return the last part of a model's name, or the shape of its random weights."""
    name = Path(model).name
    return f"random weights in the shape of {name}" if is_noise(model) else name


def write_json(path: Path, found: Any) -> None:
    """Write a file of figures, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def time_work(work: Callable[[], Any], repeats: int, device: str) -> list[float]:
    """Return the seconds of each repeat, after one warm-up that is not counted."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measure_bandwidth(device: str) -> float:
    """Copy memory within the device; return bytes per second, read and written."""
    import torch

    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = time_work(partial(target.copy_, source), 10, device)
    bandwidth = 2 * source.nbytes / statistics.median(seconds)
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()
    return bandwidth
