"""Rows on the machine: Python, platform, driver and GPUs, Jupyter, disk.

In goes the chosen device, out come rows, each with what fixes it. It knows nothing of
engines, and of a model only how much of the disk it needs.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ..machine.devices import Gpu, list_gpus, main_memory, read_driver, torch_cuda
from ..machine.settings import Settings
from ..machine.versions import find_version
from .rows import Check


def check_machine(settings: Settings) -> Iterator[Check]:
    """Yield the rows on Python, the platform, the NVIDIA driver, GPUs and Jupyter."""
    python, runs = platform.python_version(), (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("Python", python).unless(runs, "", "install 3.11, 3.12 or 3.13")
    yield _check_platform()
    yield _check_driver(settings)
    yield from map(_check_gpu, list_gpus())
    names = ("ipykernel", "ipywidgets", "jupyterlab")
    found = ", ".join(f"{name} {find_version(name) or 'missing'}" for name in names)
    yield Check("Jupyter", found).unless("missing" not in found, "", "make clean setup")


def _check_platform() -> Check:
    system, machine = platform.system(), platform.machine()
    total, free = (mib / 1024 for mib in main_memory())
    detail = f"{system} {machine}, {os.cpu_count()} cores, "
    detail += f"{free:.1f} of {total:.1f} GiB of main memory free"
    fits = (system, machine) == ("Linux", "x86_64")
    fix = "on Windows use WSL 2, on a Mac a Linux x86-64 container"
    return Check("Platform", detail).unless(fits, "; Linux on x86-64 is needed", fix)


def _check_driver(settings: Settings) -> Check:
    driver, built_for = read_driver(), torch_cuda() or "0"
    if driver.error:
        fix = "set DEVICE=auto, or install the NVIDIA driver"
        row = Check("NVIDIA driver", f"none ({driver.error}): runs on the CPU")
        return row.unless(settings.device != "cuda", ", but DEVICE=cuda", fix)
    detail = "{}, for CUDA up to {}.{}".format(driver.version, *driver.cuda)
    fits = int(built_for.split(".")[0]) <= driver.cuda[0]
    problem = f"; PyTorch here is built for CUDA {built_for}"
    row = Check("NVIDIA driver", detail).unless(fits, problem, "update the driver")
    hidden = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
    problem = f"; of {len(list_gpus(visible=False))} GPUs none is shown ({hidden})"
    fix = "unset CUDA_VISIBLE_DEVICES; if there are 0, nvidia-smi says why"
    status = "failed" if settings.device == "cuda" else "warning"
    return row.unless(list_gpus() or settings.device == "cpu", problem, fix, status)


def _check_gpu(gpu: Gpu) -> Check:
    memory = f"{gpu.free_mib:,} of {gpu.total_mib:,} MiB free"
    capability = ".".join(map(str, gpu.compute_capability))
    kind = "bfloat16" if gpu.compute_capability >= (8, 0) else "no bfloat16"
    detail = f"{gpu.name}, {memory}, compute capability {capability}, {kind}"
    fits, fix = gpu.compute_capability >= (7, 0), "use fast_inference=False on this GPU"
    row = Check(f"GPU {gpu.index}", detail)
    return row.unless(fits, "; vLLM needs 7.0 or more", fix, "warning")


def check_disk(cache: Path, need_gb: float) -> Check:
    """Make the row on the disk of the hub's cache, on which `need_gb` GB are needed."""
    there = next(path for path in (cache, *cache.parents) if os.path.exists(path))
    free_gb = shutil.disk_usage(there).free / 1e9
    row = Check("Disk", f"{free_gb:,.0f} GB free for models ({cache})")
    fix = "make room, or set HF_HOME to a folder on another disk"
    return row.unless(free_gb >= need_gb, f", {need_gb:.0f} GB needed", fix)
