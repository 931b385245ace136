"""Import one package and write its problem: `python -m ...probe NAME DEVICE FILE`.

A program for a child process, since a bad build can end Python at once. The file is
empty if the package works on the device. It knows nothing of rows.
"""

import importlib
import os
import sys
from pathlib import Path

from ..engine.cpu import import_unsloth, require_packages
from ..machine.settings import load_settings


def try_import(name: str, device: str) -> None:
    """Import PyTorch, Unsloth or vLLM, and raise an error if it can't use `device`."""
    found = device
    if name == "torch":
        importlib.import_module(name).ones(8, device=device).sum().item()
    elif name == "unsloth":
        unsloth = import_unsloth(load_settings())
        found = "cpu" if getattr(unsloth, "_IS_CPU_BACKEND", False) else "cuda"
        require_packages(fast_inference=True, load_in_4bit=False)
    elif name == "vllm":
        platform = importlib.import_module("vllm.platforms").current_platform
        platform.import_kernels()
        found = platform.device_type or "nothing here"
    if found != device:
        raise RuntimeError(f"runs on {found}, {device} is needed")


if __name__ == "__main__":
    problem = ""
    try:
        try_import(*sys.argv[1:3])
    except BaseException as error:
        cause = error.__cause__ or error
        problem = f"{type(cause).__name__}: {cause}"
    Path(sys.argv[3]).write_text(problem)
    os._exit(0)  # Skips the packages' exit handlers, which may hang.
