"""`check_environment()`: one report on machine, packages, settings and model.

In goes what `.env` and the environment say, out comes a table of rows, each ok, a
warning or failed, and what is not ok with the command that fixes it. Nothing is loaded
and nothing raised. Folders of the user do not appear in it.
"""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...models import TINY_THINKER, ModelSpec, estimate_memory, find_model
from ..engine.hub import find_folder
from ..engine.plan import adapter_base, resolve_model_path, resolve_settings
from ..engine.weights import check_files
from ..machine.devices import list_gpus, main_memory
from ..machine.settings import Settings, SettingsError, find_env_file, load_settings
from ..machine.versions import ROOT
from .machine_rows import check_disk, check_machine
from .package_rows import check_packages
from .rows import Check, EnvironmentReport

PROBE_TIMEOUT_S = 180.0


def check_environment(timeout_s: float = PROBE_TIMEOUT_S) -> EnvironmentReport:
    """Check everything that the notebooks need; some 15 s, most of it imports.

    `timeout_s` is how long an import of torch, unsloth or vllm may take, in seconds.
    Raises nothing: what goes wrong is a row.
    """
    settings_row, settings = _check_settings()
    resolved = resolve_settings(settings)
    rows = [
        *check_machine(settings),
        *check_packages(resolved, timeout_s),
        settings_row,
        *_check_model(resolved),
    ]
    return EnvironmentReport(
        tuple(
            replace(row, detail=_hide_folders(row.detail), fix=_hide_folders(row.fix))
            for row in rows
        )
    )


def _check_settings() -> tuple[Check, Settings]:
    """Make the row, and read the settings; the defaults if they can't be read."""
    with warnings.catch_warnings(record=True, action="always") as heard:
        try:
            settings = load_settings()
        except SettingsError as error:
            fix = "correct it; .env.example shows what is allowed"
            row = Check("Settings", "failed", str(error), fix)
            return row, Settings.model_construct()  # The defaults.
    file = find_env_file()
    # "../.env" says that the file is of a folder above.
    detail = os.path.relpath(file) if file else "no .env, which is fine: defaults"
    detail += ", token set" if settings.hf_token else ", no token"
    if not heard:
        return Check("Settings", "ok", detail), settings
    what, _, fix = str(heard[0].message).rpartition(": ")
    return Check("Settings", "warning", f"{detail}; {what}", fix), settings


def _check_model(settings: Settings) -> Iterator[Check]:
    """Yield the row on the model, and the one on the disk that it is stored on."""
    from huggingface_hub import constants  # Reads HF_HOME now: .env may set it.

    name, make = settings.model_name, partial(Check, "Model")
    try:
        path = resolve_model_path(name, make=False)
        folder = _find_whole_folder(path)
    except Exception as error:  # Whatever the load would end with.
        fix = f"correct MODEL_NAME; MODEL_NAME={TINY_THINKER} runs anywhere"
        yield make("failed", str(error), fix)
        return
    spec = find_model(path)
    detail = f"{name}, " + ("on this machine" if folder else "not downloaded yet")
    if not folder and constants.HF_HUB_OFFLINE:
        detail += ", and HF_HUB_OFFLINE is set"
        fix = f"unset HF_HUB_OFFLINE; or MODEL_NAME={TINY_THINKER}"
        yield make("failed", detail, fix)
    elif spec is None:
        yield make("ok", f"{detail}, none of the supported ones")
    else:
        yield _check_memory(detail, spec, settings)
    need_gb = 1.0  # For compiled code, logs and notebooks.
    if spec and not folder:
        need_gb += spec.weight_bytes(load_in_4bit="4bit" in path) / 1e9
    is_cached = folder is not None and not os.path.isdir(path)
    yield check_disk(Path(constants.HF_HUB_CACHE), need_gb, is_cached)


def _find_whole_folder(path: str) -> Path | None:
    """Find the model's folder on this machine; raise what a load of it would raise."""
    if base := adapter_base(path):
        check_files(Path(path))
    folder = find_folder(base or path)
    if folder:
        check_files(folder)
    return folder


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


def _hide_folders(text: str) -> str:
    """Shorten the user's own folders: a report is pasted into bug reports."""
    shorter = {folder: Path(folder).name for folder in (str(ROOT), sys.prefix)}
    with contextlib.suppress(OSError):  # The working directory has been deleted.
        shorter[os.getcwd()] = "."
    shorter[os.path.expanduser("~")] = "~"
    for folder in sorted(shorter, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(rf"{re.escape(folder)}(?=/|\W|$)", shorter[folder], text)
    return text
