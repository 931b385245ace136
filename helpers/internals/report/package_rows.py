"""Rows on the engines: installed, importable, for this device, of a version that ran.

In go the resolved settings, out come rows, each with the command that repairs. A bad
build can end Python at once: imports are tried in children, with this as their program,
`python -m ...package_rows NAME FILE`. With folders of a model they check its tensors.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..engine.cpu import import_unsloth, require_packages
from ..engine.weights import check_tensors
from ..machine.devices import list_gpus, torch_cuda
from ..machine.settings import VARIABLES, Settings, load_settings
from ..machine.versions import ENGINES, ROOT, find_version, pinned_version
from .rows import Check

IMPORTED = ("torch", "unsloth", "vllm")  # `try_import` knows these.
TIMEOUT_S = 180.0  # For an import.


def check_packages(settings: Settings) -> list[Check]:
    """Make a row for each of `ENGINES`."""
    with ThreadPoolExecutor(len(IMPORTED)) as pool:
        found = pool.map(lambda name: probe(name, settings.device), IMPORTED)
    problems = dict(zip(IMPORTED, found, strict=True))
    return [check_engine(name, settings, problems) for name in ENGINES]


def check_engine(name: str, settings: Settings, problems: Mapping[str, str]) -> Check:
    """Make an engine's row; `problems` has "" for each import that works."""
    device, found = settings.device, find_version(name)
    pin, rebuild = pinned_version(name, device), f"make clean setup DEVICE={device}"
    needed = "failed" if name != "bitsandbytes" or settings.load_in_4bit else "warning"
    if found is None:
        return Check(ENGINES[name], "not installed", needed, rebuild)
    problem = problems.get(name)
    row = Check(ENGINES[name], f"{found}, loads" if problem == "" else f"{found}")
    row = row.unless(not problem, f" can't be used: {problem}", rebuild)
    if name == "torch":
        fits, fix = torch_cuda() or not list_gpus(), "make clean setup DEVICE=cuda"
        row = row.unless(fits, "; a CPU build can't use the GPU", fix, "warning")
    was_run = not pin or pin.public == found.public  # Any build: 2.11.0+cu130.
    problem = f"; what was run with the others is {pin}"
    return row.unless(was_run, problem, rebuild, "warning")


def probe(name: str, device: str, *folders: Path) -> str:
    """Import a package in a child process; return its problem, "" if it works."""
    if not importlib.util.find_spec(name):
        return "its files are gone"
    path = os.pathsep.join([str(ROOT), *filter(os.path.isabs, sys.path)])
    variables = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    variables |= {"PYTHONPATH": path, "DEVICE": device, "LOG_LEVEL": "warning"}
    # Unsloth writes compiled code to the working directory, and no .env is found here.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file, log = Path(folder, "problem.txt"), Path(folder, "log.txt")
        module = f"{__package__}.package_rows"  # -u, since `os._exit` flushes nothing.
        program = [sys.executable, "-u", "-m", module, name, str(file), *folders]
        options = {"cwd": folder, "env": variables, "timeout": TIMEOUT_S}
        try:
            with log.open("w") as out:
                done = subprocess.run(program, stdout=out, stderr=out, **options)
        except subprocess.TimeoutExpired:
            return f"its import did not end within {TIMEOUT_S:.0f} s"
        if not file.exists():
            return f"its import ended Python (status {done.returncode})"
        # If its compiled part does not load, vLLM only warns.
        warned = re.search(r"Failed to import from .*", log.read_text(errors="replace"))
        problem = file.read_text() or (warned[0] if warned else "")
        return textwrap.shorten(problem, 240, placeholder=" ...")


def try_import(name: str, *folders: str) -> None:
    """Import a package; raise if it can't use the device, or a model in `folders`."""
    settings = load_settings()
    settings.apply()
    found = device = settings.device
    if name == "torch":
        importlib.import_module(name).ones(8, device=device).sum().item()
    elif name == "unsloth":
        on_cpu = getattr(import_unsloth(settings), "_IS_CPU_BACKEND", False)
        found = "cpu" if on_cpu else "cuda"
        require_packages(fast_inference=True, load_in_4bit=False)
    elif folders:
        check_tensors(*map(Path, folders), lenient=False)
    else:
        platform = importlib.import_module("vllm.platforms").current_platform
        platform.import_kernels()
        found = platform.device_type or "nothing here"
    if found != device:
        raise RuntimeError(f"runs on {found}, {device} is needed")


if __name__ == "__main__":
    problem = ""
    try:
        try_import(sys.argv[1], *sys.argv[3:])
    except BaseException as error:
        cause = error.__cause__ or error
        problem = f"{type(cause).__name__}: {cause}"
    Path(sys.argv[2]).write_text(problem)
    os._exit(0)  # Skips the packages' exit handlers, which may hang.
