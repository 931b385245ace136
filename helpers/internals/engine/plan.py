"""From the settings to what will be loaded, and where: each "auto" replaced."""

import contextlib
import math
from typing import Literal

from ...models import (
    MOST_OF_A_GPU,
    TINY_THINKER,
    UnknownModelError,
    estimate_memory,
    find_model,
    is_embedded,
)
from ..machine.devices import current_gpu, list_gpus, runs_cuda
from ..machine.settings import AUTO, Settings, load_settings
from .errors import ModelLoadError
from .hub import resolve_model_path

GPU_MODEL = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"


def detect_device(settings: Settings | None = None) -> Literal["cuda", "cpu"]:
    """Return where the engines will run; imports no torch, starts no CUDA.

    DEVICE decides where it is set. Otherwise "cuda" where there is a visible GPU, a
    PyTorch built for CUDA, and a driver that is new enough for that build.
    Without `settings` they are read; raises `SettingsError` as `load_settings` does.
    """
    device = (load_settings() if settings is None else settings).device
    if device != AUTO:
        return device
    return "cuda" if runs_cuda() and list_gpus() else "cpu"


def resolve_settings(settings: Settings) -> Settings:
    """Replace each "auto" by what suits this machine."""
    device = detect_device(settings)
    name = settings.model_name
    if name == AUTO:
        name = GPU_MODEL if device == "cuda" else TINY_THINKER
    in_4bit = settings.load_in_4bit
    if in_4bit is None:
        in_4bit = True
        # A bad name is reported later, by from_pretrained.
        with contextlib.suppress(UnknownModelError, ModelLoadError):
            in_4bit = not is_embedded(resolve_model_path(name, make=False))
    share = settings.gpu_memory_utilization or free_share(device)
    resolved = {"device": device, "model_name": name, "load_in_4bit": in_4bit}
    return settings.model_copy(update=resolved | {"gpu_memory_utilization": share})


def free_share(device: str = "cuda") -> float:
    """Return the share of the current GPU's memory that is free, less a margin.

    vLLM takes a share of all memory, and refuses one that is not free.
    """
    gpu = current_gpu() if device == "cuda" else None
    free = gpu.free_mib / gpu.total_mib if gpu else 1.0
    return max(0.01, math.floor(100 * MOST_OF_A_GPU * free) / 100)


def needed_mib(
    path: str, max_seq_length: int, load_in_4bit: bool, share: float = 0.0
) -> float:
    """Estimate the free memory that a load needs, in MiB; 0 where nothing is known.

    vLLM on a GPU takes `share` of the whole card, whatever the model is.
    """
    gpu = current_gpu()
    if gpu and share:
        return share * gpu.total_mib
    if (spec := find_model(path)) is None:
        return 0.0
    length = min(max_seq_length, spec.context_length)
    return estimate_memory(spec, length, load_in_4bit=load_in_4bit).total_mib
