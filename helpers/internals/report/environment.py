"""Whether this machine and its packages can run the notebooks, and what to fix.

`check_environment()` asks the packages for their versions without importing them, then
imports the three that break in practice (torch, unsloth, vllm) in a child process
each: a bad build can end Python at once, and must not end a notebook's kernel.
"""

import contextlib
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from ...models import TINY_THINKER, ModelSpec, estimate_memory, find_model
from ..engine.hub import find_folder, resolve_model_path
from ..engine.plan import resolve_settings
from ..machine.devices import (
    Gpu,
    gpu_problems,
    list_gpus,
    main_memory,
    read_driver,
    torch_cuda,
)
from ..machine.settings import Settings, SettingsError, find_env_file, load_settings
from ..machine.versions import (
    ROOT,
    check_packages,
    find_version,
    pip_command,
    probe_all,
)
from .rows import Check, EnvironmentReport

PROBE_TIMEOUT_S = 180.0


def check_environment(timeout_s: float = PROBE_TIMEOUT_S) -> EnvironmentReport:
    """Check everything that the notebooks need; some 15 s, most of it imports.

    `timeout_s` is how long an import of torch, unsloth or vllm may take, in seconds.
    Raises nothing: what goes wrong is a row.
    """
    settings_row, settings = _check_settings()
    resolved = resolve_settings(settings)
    facts = probe_all(resolved.device, timeout_s)
    rows = [
        _check_python(),
        _check_platform(),
        *_check_gpus(settings),
        *check_packages(resolved, facts),
        settings_row,
        *_check_model(resolved),
        _check_kernel(),
    ]
    return EnvironmentReport(
        tuple(replace(r, detail=_tidy(r.detail), fix=_tidy(r.fix)) for r in rows)
    )


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


# --- GPUs -----------------------------------------------------------------------------


def _check_gpus(settings: Settings) -> Iterator[Check]:
    driver, make = read_driver(), partial(Check, "NVIDIA driver")
    if driver.error:
        detail = f"none ({driver.error}): runs on the CPU"
        if settings.device == "cuda":
            fix = "set DEVICE=auto, or install the NVIDIA driver"
            yield make("failed", f"{detail}, but DEVICE=cuda", fix)
        else:
            yield make("ok", detail)
        return
    detail = "{}, for CUDA up to {}.{}".format(driver.version, *driver.cuda)
    needed = torch_cuda()
    if needed and int(needed.split(".")[0]) > driver.cuda[0]:
        detail += f"; PyTorch here is built for CUDA {needed}"
        yield make("failed", detail, "update the NVIDIA driver")
    else:
        yield make("ok", detail)
    gpus, count = list_gpus(), len(list_gpus(visible=False))
    if count and not gpus and settings.device == "cpu":
        yield Check("GPU", "ok", f"{count}, not used: DEVICE=cpu")
    elif count and not gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        detail = f"{count}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        status = "failed" if settings.device == "cuda" else "warning"
        yield Check("GPU", status, detail, "unset CUDA_VISIBLE_DEVICES")
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


# --- The user's choices ---------------------------------------------------------------


def _check_settings() -> tuple[Check, Settings]:
    """The row, and the settings; the defaults where they can't be read."""
    with warnings.catch_warnings(record=True, action="always") as heard:
        try:
            settings = load_settings()
        except SettingsError as error:
            fix = "correct it; .env.example shows what is allowed"
            return Check("Settings", "failed", str(error), fix), Settings()
    token = "token set" if settings.hf_token else "no token"
    detail = f"{find_env_file() or 'no .env, which is fine: defaults'}, {token}"
    if not heard:
        return Check("Settings", "ok", detail), settings
    what, _, fix = str(heard[0].message).rpartition(": ")
    return Check("Settings", "warning", f"{detail}; {what}", fix), settings


def _check_model(settings: Settings) -> Iterator[Check]:
    """The rows on the model, and on the disk that the hub's files go to."""
    from huggingface_hub import constants  # Reads HF_HOME now: .env may set it.

    name, make = settings.model_name, partial(Check, "Model")
    try:
        path = resolve_model_path(name, make=False)
        here = find_folder(path) is not None
    except Exception as error:  # huggingface_hub may refuse the name as well.
        fix = f"correct MODEL_NAME; MODEL_NAME={TINY_THINKER} runs anywhere"
        yield make("failed", str(error), fix)
        return
    spec = find_model(path)
    detail = f"{name}, " + ("on this machine" if here else "not downloaded yet")
    if not here and constants.HF_HUB_OFFLINE:
        detail += ", and HF_HUB_OFFLINE is set"
        fix = f"unset HF_HUB_OFFLINE; or MODEL_NAME={TINY_THINKER}"
        yield make("failed", detail, fix)
    elif spec is None:
        yield make("ok", f"{detail}, none of the supported ones")
    else:
        yield _check_memory(detail, spec, settings)
    need_gb = 1.0  # For compiled code, logs and notebooks.
    if spec and not here:
        need_gb += spec.weight_bytes(load_in_4bit="4bit" in path) / 1e9
    is_cached = here and not os.path.isdir(path)
    yield _check_disk(Path(constants.HF_HUB_CACHE), need_gb, is_cached)


def _check_memory(detail: str, spec: ModelSpec, settings: Settings) -> Check:
    in_4bit = bool(settings.load_in_4bit)
    try:
        need = estimate_memory(spec, settings.max_seq_length, load_in_4bit=in_4bit)
    except ValueError as error:
        return Check("Model", "failed", str(error), "lower MAX_SEQ_LENGTH")
    gpus = list_gpus() if settings.device == "cuda" else ()
    free = gpus[0].free_mib if gpus else main_memory().available_mib
    share = settings.gpu_memory_utilization
    if not gpus:  # There the cache has a size of its own.
        cache = settings.vllm_cpu_kvcache_space * 1024
        free, share = min(free, need.weights_mib + need.overhead_mib + cache), 1.0
    advice = need.advice(free, share)
    if need.fits(free * share):
        return Check("Model", "ok", f"{detail}; {advice}")
    return Check("Model", "warning", detail, advice)


def _check_disk(cache: Path, need_gb: float, is_cached: bool) -> Check:
    """Whether the hub's files can be stored; a cache that is only read need not be."""
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


def _check_kernel() -> Check:
    found = {n: find_version(n) for n in ("ipykernel", "ipywidgets", "jupyterlab")}
    detail = ", ".join(f"{name} {v or 'missing'}" for name, v in found.items())
    if missing := [name for name in found if not found[name]]:
        status = "failed" if "ipykernel" in missing else "warning"
        return Check("Jupyter", status, detail, pip_command(" ".join(missing)))
    return Check("Jupyter", "ok", detail)


def _tidy(text: str) -> str:
    """Without the user's own folders: a report is pasted into bug reports."""
    entries = [*filter(os.path.isabs, sys.path), sys.prefix, sys.base_prefix]
    shorter = {entry: os.path.basename(entry) for entry in entries}
    # These are often on sys.path as well.
    with contextlib.suppress(OSError):  # The working directory has been deleted.
        shorter[os.getcwd()] = "."
    shorter |= {os.path.expanduser("~"): "~", str(ROOT): "."}
    for folder in sorted(shorter, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(rf"{re.escape(folder)}(?=/|\W|$)", shorter[folder], text)
    return text
