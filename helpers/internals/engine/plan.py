"""Resolve each "auto", and find what a model's name stands for.

In go the settings, or a name; out come a `LoadPlan`, or settings without "auto".
"""

import math
import os
import re
from pathlib import Path
from typing import Literal

from ... import models
from ...models import GPU_MODEL, SMOLLM2, TINY_THINKER, UnknownModelError, find_model
from ..machine.devices import current_gpu, list_gpus, runs_cuda
from ..machine.settings import AUTO, Settings, load_settings
from .errors import LoadPlan
from .exceptions import ModelLoadError, ModelNotFoundError
from .smollm2 import make_smollm2
from .weights import adapter_config


def detect_device(settings: Settings | None = None) -> Literal["cuda", "cpu"]:
    """Return where the engines will run: DEVICE, or "cuda" where PyTorch can use it."""
    device = (settings or load_settings()).device
    if device != AUTO:
        return device
    return "cuda" if runs_cuda() and list_gpus() else "cpu"


def resolve_model_path(model_name: str | os.PathLike, make: bool = True) -> str:
    """Find what to load for a name: a directory, a supported model's path, a hub path.

    The files of smollm2 are made if they are missing, unless `make` is False. Raises
    `UnknownModelError`, and for a directory that is not there `ModelNotFoundError`.
    """
    name = os.fspath(model_name).strip()
    if (folder := Path(name).expanduser()).is_dir():
        return str(folder)
    if name.lower().endswith(".gguf"):
        raise ModelLoadError(f"{name} is for llama.cpp: load the model's own folder.")
    if name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no directory {name}.")
    name = name.removeprefix("https://huggingface.co/").rstrip("/")
    try:
        spec = models.get_model(name)
    except UnknownModelError:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return name  # Not in our table, but perhaps on the hub.
        raise
    if spec.name == SMOLLM2 and make:
        make_smollm2()
    return spec.path


def adapter_base(path: str) -> str | None:
    """Return the path of the model that an adapter's folder is for; None for others."""
    if config := adapter_config(path):
        try:
            return resolve_model_path(config["base_model_name_or_path"])
        except (ModelLoadError, UnknownModelError) as error:
            raise ModelLoadError(f"the model of the adapter {path}: {error}") from error
    return None


def resolve_settings(settings: Settings) -> Settings:
    """Replace each "auto" by what suits this machine."""
    device, name = detect_device(settings), settings.model_name
    if name == AUTO:
        name = GPU_MODEL if device == "cuda" else TINY_THINKER
    in_4bit, share = settings.load_in_4bit, settings.gpu_memory_utilization
    if in_4bit is None:
        in_4bit = name.strip("/ ").lower() not in (TINY_THINKER, SMOLLM2)
    if share is None:  # Of all memory: vLLM refuses a share that is not free.
        gpu = current_gpu() if device == "cuda" else None
        free = gpu.free_mib / gpu.total_mib if gpu else 1.0
        share = max(0.01, math.floor(100 * models.MOST_OF_A_GPU * free) / 100)
    auto = {"device": device, "model_name": name, "load_in_4bit": in_4bit}
    return settings.model_copy(update=auto | {"gpu_memory_utilization": share})


def needed_mib(plan: LoadPlan, share: float = 0.0) -> float:
    """Estimate the free memory that a load needs, in MiB; 0 if nothing is known."""
    gpu, estimate = current_gpu(), plan.estimate()
    if gpu and share:  # vLLM takes this share of the whole card for any model.
        return share * gpu.total_mib
    return estimate.total_mib if estimate else 0.0


def plan_load(
    name: str | os.PathLike, device: str, in_4bit: bool, max_seq_length: int | None
) -> LoadPlan:
    """Find what a name stands for; raise what `resolve_model_path` raises."""
    path, folder = resolve_model_path(name), Path(name).expanduser()
    # A notebook shows the name of a folder, and not where it lies.
    shown = folder.name if folder.is_dir() else os.fspath(name)
    return LoadPlan(shown, path, find_model(path), device, in_4bit, max_seq_length)
