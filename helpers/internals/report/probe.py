"""Import one package and write its facts as JSON: `python -m ...probe NAME FILE`.

A program for a child process, since a bad build can end Python at once. It knows
nothing of rows: `package_rows` starts it and reads the file.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from ..engine.cpu import import_unsloth
from ..machine.settings import load_settings


def probe_torch() -> dict:
    """Import PyTorch; report if it finds a GPU, after a sum on it."""
    import torch

    found = torch.cuda.is_available()
    if found:
        torch.ones(8, device="cuda").sum().item()
    return {"cuda": found}


def probe_unsloth() -> dict:
    """Import Unsloth; report its device, and why it has switched vLLM off, or None."""
    unsloth = import_unsloth(load_settings())
    import_fixes = importlib.import_module("unsloth.import_fixes")
    on_cpu = getattr(unsloth, "_IS_CPU_BACKEND", False)
    reason = getattr(import_fixes, "VLLM_DISABLED_REASON", None)
    return {"device": "cpu" if on_cpu else "cuda", "vllm": reason}


def probe_vllm() -> dict:
    """Load vLLM's compiled part; report the device that it is built for."""
    import vllm  # noqa: F401
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return {"device": current_platform.device_type}


PROBES = {"torch": probe_torch, "unsloth": probe_unsloth, "vllm": probe_vllm}


def main(name: str, file: str) -> None:
    """Write the facts, "error" among them if the import failed, and end the process."""
    try:
        facts = PROBES[name]()
    except BaseException as error:
        cause = error.__cause__ or error
        facts = {"error": f"{type(cause).__name__}: {cause}"}
    Path(file).write_text(json.dumps(facts))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Skips the packages' exit handlers, which may hang.


if __name__ == "__main__":
    main(*sys.argv[1:])
