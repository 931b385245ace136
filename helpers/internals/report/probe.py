"""Import one package, and write what was found: `python -m ...probe NAME FILE`.

`packages` runs this in a child process, since a bad build can end Python at once.
"""

import importlib
import json
import os
import sys
from pathlib import Path


def probe_torch() -> dict:
    """Whether it finds a GPU, and can compute on it."""
    import torch

    found = torch.cuda.is_available()
    if found:
        torch.ones(8, device="cuda").sum().item()
    return {"cuda": found}


def probe_unsloth() -> dict:
    """What it would run on, and why it has switched vLLM off, if it has."""
    from ..engine.cpu import import_unsloth
    from ..machine.settings import load_settings

    unsloth = import_unsloth(load_settings())
    import_fixes = importlib.import_module("unsloth.import_fixes")
    on_cpu = getattr(unsloth, "_IS_CPU_BACKEND", False)
    reason = getattr(import_fixes, "VLLM_DISABLED_REASON", None)
    return {"device": "cpu" if on_cpu else "cuda", "vllm": reason}


def probe_vllm() -> dict:
    """What it is built for, once its compiled part has loaded."""
    import vllm  # noqa: F401
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return {"device": current_platform.device_type}


PROBES = {"torch": probe_torch, "unsloth": probe_unsloth, "vllm": probe_vllm}


def main(name: str, file: str) -> None:
    """Write the facts as JSON, "error" among them where the import failed, and end."""
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
