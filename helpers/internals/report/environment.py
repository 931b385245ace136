"""`check_environment()`: one report on machine, packages, settings and model.

In goes what `.env` and the environment say, out comes a table of rows, each ok, or with
what mends it. Nothing is loaded or raised, and the user's home does not appear in it.
"""

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from dotenv import find_dotenv

from ...models import TINY_THINKER, MemoryEstimate, estimate_memory, find_model
from ..engine.hub import find_folder
from ..engine.plan import adapter_base, resolve_model_path, resolve_settings
from ..machine.devices import list_gpus, main_memory, read_driver, torch_cuda
from ..machine.settings import Settings, SettingsError, load_settings
from ..machine.versions import find_version
from .package_rows import check_packages, probe
from .rows import Check, EnvironmentReport

_RUNS_ANYWHERE = f"MODEL_NAME={TINY_THINKER} runs anywhere"


def check_environment() -> EnvironmentReport:
    """Check everything that the notebooks need, in some 15 s; each error is a row."""
    row, settings = _check_settings()
    resolved = resolve_settings(settings)
    rows = [*_check_machine(settings), *check_packages(resolved)]
    rows += [row, *_check_model(resolved)]
    home = os.path.expanduser("~/")  # A report is pasted into bug reports.
    shown = [Check(*(text.replace(home, "~/") for text in row)) for row in rows]
    return EnvironmentReport(shown)


def _check_machine(settings: Settings) -> Iterator[Check]:
    """Yield the rows on Python, the platform, the NVIDIA driver, GPUs and Jupyter."""
    python, runs = platform.python_version(), (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("Python", python).unless(runs, "", "install 3.11, 3.12 or 3.13")
    system = f"{platform.system()} {platform.machine()}"
    total, free = (mib / 1024 for mib in main_memory())
    memory = f"{free:.1f} of {total:.1f} GiB of main memory free"
    row = Check("Platform", f"{system}, {os.cpu_count()} cores, {memory}")
    fix = "on Windows use WSL 2, on a Mac a Linux x86-64 container"
    yield row.unless(system == "Linux x86_64", "; Linux on x86-64 is needed", fix)
    yield _check_driver(settings)
    for gpu in list_gpus():
        able, memory = gpu.compute_capability, f"{gpu.free_mib:,} of {gpu.total_mib:,}"
        kind = "bfloat16" if able >= (8, 0) else "no bfloat16"
        found = "{}, {} MiB free, compute capability {}.{}, {}"
        row = Check(f"GPU {gpu.index}", found.format(gpu.name, memory, *able, kind))
        fix = "use fast_inference=False on this GPU"
        yield row.unless(able >= (7, 0), "; vLLM needs 7.0 or more", fix, "warning")
    names = ("ipykernel", "ipywidgets", "jupyterlab")
    found = ", ".join(f"{name} {find_version(name) or 'missing'}" for name in names)
    yield Check("Jupyter", found).unless("missing" not in found, "", "make clean setup")


def _check_driver(settings: Settings) -> Check:
    (version, cuda, error), built_for = read_driver(), torch_cuda() or "0"
    if error:
        fix = "set DEVICE=auto, or install the NVIDIA driver"
        row = Check("NVIDIA driver", f"none ({error}): runs on the CPU")
        return row.unless(settings.device != "cuda", ", but DEVICE=cuda", fix)
    detail = "{}, for CUDA up to {}.{}".format(version, *cuda)
    fits = int(built_for.split(".")[0]) <= cuda[0]
    problem = f"; PyTorch here is built for CUDA {built_for}"
    row = Check("NVIDIA driver", detail).unless(fits, problem, "update the driver")
    hidden = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
    problem = f"; of {len(list_gpus(visible=False))} GPUs none is shown ({hidden})"
    fix = "unset CUDA_VISIBLE_DEVICES; if there are 0, nvidia-smi says why"
    status = "failed" if settings.device == "cuda" else "warning"
    return row.unless(list_gpus() or settings.device == "cpu", problem, fix, status)


def _check_settings() -> tuple[Check, Settings]:
    """Make the row, and read the settings; the defaults if they can't be read."""
    with warnings.catch_warnings(record=True, action="always") as heard:
        try:
            settings = load_settings()
        except SettingsError as error:
            row = Check("Settings", str(error), "failed", "see .env.example")
            return row, Settings.model_construct()  # The defaults.
    file, token = find_dotenv(usecwd=True), "token" if settings.hf_token else "no token"
    # "../.env" says that the file is of a folder above.
    place = os.path.relpath(file) if file else "no .env, which is fine: defaults"
    row = Check("Settings", f"{place}, {token}")
    for one in heard:
        what, _, fix = str(one.message).rpartition(": ")
        row = row.unless(False, f"; {what}", fix, "warning")
    return row, settings


def _check_model(settings: Settings) -> Iterator[Check]:
    """Yield the row on the model, and the one on the disk that it is stored on."""
    from huggingface_hub import constants  # Reads HF_HOME now: .env may set it.

    name, length = settings.model_name, settings.max_seq_length
    try:
        path = resolve_model_path(name, make=False)
        base, spec = adapter_base(path), find_model(path)
        folder = find_folder(base or path, Path(path) if base else None)
        need = spec and estimate_memory(spec, length, 1, settings.load_in_4bit)
        parts = [Path(one).absolute() for one in (folder, base and path) if one]
        if folder and (problem := probe("transformers", settings.device, *parts)):
            raise RuntimeError(problem)
    except Exception as error:  # Whatever the load would end with.
        fix = f"correct MODEL_NAME or MAX_SEQ_LENGTH; {_RUNS_ANYWHERE}"
        yield Check("Model", str(error), "failed", fix)
        return
    place = "on this machine" if folder else "not downloaded yet"
    offline, fix = constants.HF_HUB_OFFLINE, f"unset HF_HUB_OFFLINE; {_RUNS_ANYWHERE}"
    row = Check("Model", f"{name}, {place}")
    row = row.unless(folder or not offline, ", and HF_HUB_OFFLINE is set", fix)
    yield _check_memory(row, need, settings) if need else row
    missing = 0 if folder or not spec else spec.weight_bytes("4bit" in path)
    yield _check_disk(Path(constants.HF_HUB_CACHE), 1 + missing / 1e9)  # 1 GB: logs


def _check_memory(row: Check, need: MemoryEstimate, settings: Settings) -> Check:
    if settings.device == "cuda" and (gpus := list_gpus()):
        free, share = gpus[0].free_mib, settings.gpu_memory_utilization
    else:  # There the cache has a size of its own.
        cache = settings.vllm_cpu_kvcache_space * 1024
        free, share = min(main_memory()[1], need.fixed_mib + cache), 1.0
    advice = need.advice(free, share)
    row = row.unless(need.fits(free * share), "", advice, "warning")
    return row._replace(detail=f"{row.detail}; {advice}") if row.status == "ok" else row


def _check_disk(cache: Path, need_gb: float) -> Check:
    """Make the row on the disk of the hub's cache, on which `need_gb` GB are needed."""
    there = next(path for path in (cache, *cache.parents) if os.path.exists(path))
    free_gb = shutil.disk_usage(there).free / 1e9
    row = Check("Disk", f"{free_gb:,.0f} GB free for models ({cache})")
    fix = "make room, or set HF_HOME to a folder on another disk"
    return row.unless(free_gb >= need_gb, f", {need_gb:.0f} GB needed", fix)
