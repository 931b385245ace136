"""`check_environment()`: one report on machine, packages, settings and model.

In goes what `.env` and the environment say, out comes a table of rows, each ok, a
warning or failed, and what is not ok with the command that fixes it. Nothing is loaded
and nothing raised. The user's home does not appear in it.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

from dotenv import find_dotenv

from ...models import TINY_THINKER, MemoryEstimate, estimate_memory, find_model
from ..engine.hub import find_folder
from ..engine.plan import adapter_base, resolve_model_path, resolve_settings
from ..machine.devices import list_gpus, main_memory
from ..machine.settings import Settings, SettingsError, load_settings
from .machine_rows import check_disk, check_machine
from .package_rows import check_packages
from .rows import Check, EnvironmentReport

_RUNS_ANYWHERE = f"MODEL_NAME={TINY_THINKER} runs anywhere"


def check_environment(timeout_s: float = 180.0) -> EnvironmentReport:
    """Check everything that the notebooks need; some 15 s, most of it imports.

    `timeout_s` is how long an import of torch, unsloth or vllm may take, in seconds.
    Raises nothing: what goes wrong is a row.
    """
    row, settings = _check_settings()
    resolved = resolve_settings(settings)
    machine, packages = check_machine(settings), check_packages(resolved, timeout_s)
    rows = [*machine, *packages, row, *_check_model(resolved)]
    home = os.path.expanduser("~/")  # A report is pasted into bug reports.
    shown = [[text.replace(home, "~/") for text in astuple(row)] for row in rows]
    return EnvironmentReport(tuple(Check(*texts) for texts in shown))


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

    name, length, need = settings.model_name, settings.max_seq_length, None
    try:
        path = resolve_model_path(name, make=False)
        base, spec = adapter_base(path), find_model(path)
        folder = find_folder(base or path, Path(path) if base else None)
        if spec:
            need = estimate_memory(spec, length, 1, bool(settings.load_in_4bit))
    except Exception as error:  # Whatever the load would end with.
        fix = f"correct MODEL_NAME or MAX_SEQ_LENGTH; {_RUNS_ANYWHERE}"
        yield Check("Model", str(error), "failed", fix)
        return
    place = "on this machine" if folder else "not downloaded yet"
    row = Check("Model", f"{name}, {place}").unless(
        folder or not constants.HF_HUB_OFFLINE,
        ", and HF_HUB_OFFLINE is set",
        f"unset HF_HUB_OFFLINE; {_RUNS_ANYWHERE}",
    )
    yield _check_memory(row, need, settings) if need else row
    need_gb = 1.0  # For compiled code, logs and notebooks.
    if spec and not folder:
        need_gb += spec.weight_bytes(load_in_4bit="4bit" in path) / 1e9
    yield check_disk(Path(constants.HF_HUB_CACHE), need_gb)


def _check_memory(row: Check, need: MemoryEstimate, settings: Settings) -> Check:
    gpus = list_gpus() if settings.device == "cuda" else ()
    if gpus:
        free, share = gpus[0].free_mib, settings.gpu_memory_utilization
    else:  # There the cache has a size of its own.
        cache = settings.vllm_cpu_kvcache_space * 1024
        free, share = min(main_memory()[1], need.fixed_mib + cache), 1.0
    advice = need.advice(free, share)
    row = row.unless(need.fits(free * share), "", advice, "warning")
    return replace(row, detail=f"{row.detail}; {advice}") if row.status == "ok" else row
