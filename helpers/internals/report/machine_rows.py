"""Rows on the machine: Python, platform, driver and GPUs, Jupyter, disk.

In goes the chosen device, out come rows, each with what fixes it. It knows nothing of
engines, and of a model only how much of the disk it needs.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from ..machine.devices import (
    Gpu,
    gpu_problems,
    list_gpus,
    main_memory,
    read_driver,
    torch_cuda,
)
from ..machine.settings import Settings
from ..machine.versions import find_version
from .rows import Check, pip_command


def check_machine(settings: Settings) -> Iterator[Check]:
    """Yield the rows on Python, the platform, the NVIDIA driver, GPUs and Jupyter."""
    yield _check_python()
    yield _check_platform()
    yield _check_driver(settings)
    yield from _check_gpus(settings)
    yield _check_jupyter()


def _check_python() -> Check:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", version)
    detail = f"{version}; not every package has a build for it"
    fix = "install Python 3.11, 3.12 or 3.13, then: make clean setup"
    return Check("Python", "failed", detail, fix)


def _check_platform() -> Check:
    system, machine, memory = platform.system(), platform.machine(), main_memory()
    on_linux = system == "Linux"
    cores = len(psutil.Process().cpu_affinity()) if on_linux else os.cpu_count()
    detail = (
        f"{system} {machine}, {cores} cores, {memory.available_mib / 1024:.1f} of "
        f"{memory.total_mib / 1024:.1f} GiB of main memory free"
    )
    if on_linux and machine.lower() in ("x86_64", "amd64"):
        return Check("Platform", "ok", detail)
    detail += "; Unsloth and vLLM are pinned for Linux on x86-64"
    fix = "on Windows use WSL 2, on a Mac a Linux x86-64 container"
    return Check("Platform", "failed", detail, fix)


def _check_driver(settings: Settings) -> Check:
    driver, make = read_driver(), partial(Check, "NVIDIA driver")
    if driver.error:
        detail = f"none ({driver.error}): runs on the CPU"
        if settings.device != "cuda":
            return make("ok", detail)
        fix = "set DEVICE=auto, or install the NVIDIA driver"
        return make("failed", f"{detail}, but DEVICE=cuda", fix)
    detail = "{}, for CUDA up to {}.{}".format(driver.version, *driver.cuda)
    needed = torch_cuda()
    if needed and int(needed.split(".")[0]) > driver.cuda[0]:
        detail += f"; PyTorch here is built for CUDA {needed}"
        return make("failed", detail, "update the NVIDIA driver")
    return make("ok", detail)


def _check_gpus(settings: Settings) -> Iterator[Check]:
    if read_driver().error:
        return
    gpus, count = list_gpus(), len(list_gpus(visible=False))
    if count and not gpus:
        hidden = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
        if settings.device == "cpu":
            yield Check("GPU", "ok", f"{count}, not used: DEVICE=cpu")
        else:
            status = "failed" if settings.device == "cuda" else "warning"
            fix = "unset CUDA_VISIBLE_DEVICES"
            yield Check("GPU", status, f"{count}, hidden by {hidden}", fix)
    yield from map(_check_gpu, gpus)
    problems = gpu_problems()
    if problems or not count:
        detail = "; ".join(problems) or "the driver runs, but finds none"
        yield Check("Other GPUs" if count else "GPU", "warning", detail, "nvidia-smi")


def _check_gpu(gpu: Gpu) -> Check:
    capability = ".".join(map(str, gpu.compute_capability or ["unknown"]))
    detail = (
        f"{gpu.name}, {gpu.free_mib:,} of {gpu.total_mib:,} MiB free, compute "
        f"capability {capability}, {'' if gpu.bf16 else 'no '}bfloat16"
    )
    make = partial(Check, f"GPU {gpu.index}")
    if (gpu.compute_capability or (7, 0)) >= (7, 0):
        return make("ok", detail)
    fix = "use fast_inference=False on this GPU"
    return make("warning", f"{detail}; vLLM needs 7.0 or more", fix)


def _check_jupyter() -> Check:
    found = {n: find_version(n) for n in ("ipykernel", "ipywidgets", "jupyterlab")}
    detail = ", ".join(f"{name} {v or 'missing'}" for name, v in found.items())
    if missing := [name for name in found if not found[name]]:
        status = "failed" if "ipykernel" in missing else "warning"
        return Check("Jupyter", status, detail, pip_command(" ".join(missing)))
    return Check("Jupyter", "ok", detail)


def check_disk(cache: Path, need_gb: float, is_cached: bool) -> Check:
    """Make the row on the disk of the hub's cache, on which `need_gb` GB are needed.

    A cache that can't be written to is enough if the model is in it (`is_cached`).
    """
    make = partial(Check, "Disk")
    there = next(path for path in (cache, *cache.parents) if os.path.exists(path))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        if is_cached:
            return make("ok", f"{cache}, which can't be written to, has the model")
        detail = f"models can't be stored in {cache} ({there}: {error.strerror})"
        fix = "export HF_HOME=FOLDER, one that you may write to; .env takes it too"
        return make("failed", detail, fix)
    free_gb = shutil.disk_usage(there).free / 1e9
    detail = f"{free_gb:,.0f} GB free for models ({cache})"
    if free_gb >= need_gb:
        return make("ok", detail)
    fix = "make room, or set HF_HOME to a folder on another disk"
    return make("failed", f"{detail}, {need_gb:.0f} GB needed", fix)
