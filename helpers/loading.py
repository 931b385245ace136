"""`FastLanguageModel`, the same on a GPU and without one.

Getting it imports unsloth, first as it must be, and gives a subclass of its class: it
knows the embedded models, loads vLLM's CPU engine where `fast_inference=True` has no
GPU, survives a Ctrl-C in `fast_generate`, and says what to do about known errors.
It is quiet: LOG_LEVEL=debug (or info) brings the engines' own output back.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .internals.engine.cpu import (
    import_unsloth,
    load_cpu_engine,
    refuse_for_cpu_engine,
    require_packages,
    set_threads,
    take_engine_arguments,
)
from .internals.engine.errors import LoadPlan, explained, not_cached
from .internals.engine.exceptions import ModelLoadError, ModelNotCachedError
from .internals.engine.hub import ask_hub, find_folder, hub_switched_off
from .internals.engine.plan import adapter_base, needed_mib, plan_load
from .internals.engine.quiet import announced, is_loud, quiet
from .internals.engine.stop import finishing, interruptible
from .internals.engine.weights import check_tensors, warn_of_stretching
from .internals.machine.settings import load_settings
from .kernel import make_room
from .models import TINY_THINKER, whole_name

if TYPE_CHECKING:
    from unsloth import FastLanguageModel

__all__ = ["FastLanguageModel"]


def __getattr__(name: str) -> Any:
    if name != "FastLanguageModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _fast_language_model()
    return globals()[name]


def _fast_language_model() -> type:
    """Import unsloth and make the class that this module is for."""
    settings = load_settings()
    with announced("Importing Unsloth"), finishing("the import of unsloth"):
        unsloth = import_unsloth(settings)
    has_gpu = not getattr(unsloth, "_IS_CPU_BACKEND", False)
    if settings.device == "cuda" and not has_gpu:
        raise ModelLoadError(
            "DEVICE=cuda, but Unsloth finds no usable GPU. `python -m helpers` says "
            "why; DEVICE=auto takes the CPU instead."
        )

    class FastLanguageModel(unsloth.FastLanguageModel):
        @staticmethod
        @functools.wraps(unsloth.FastLanguageModel.from_pretrained)
        def from_pretrained(model_name=TINY_THINKER, *args, **kwargs):
            return _from_pretrained(
                unsloth.FastLanguageModel, has_gpu, model_name, *args, **kwargs
            )

    FastLanguageModel.__module__ = __name__
    FastLanguageModel.__qualname__ = "FastLanguageModel"
    return FastLanguageModel


def _from_pretrained(
    unsloth_class: Any,
    has_gpu: bool,
    model_name: str | os.PathLike,
    max_seq_length: int | None = 2048,
    dtype: Any = None,
    load_in_4bit: bool = True,
    *args: Any,
    fast_inference: bool = False,
    local_files_only: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer; raise `ModelLoadError` or `UnknownModelError`."""
    settings, device = load_settings(), "cuda" if has_gpu else "cpu"
    on_cpu_engine = fast_inference and not has_gpu
    load_in_4bit = load_in_4bit and not on_cpu_engine
    plan = plan_load(model_name, device, load_in_4bit, max_seq_length)
    require_packages(fast_inference, load_in_4bit)
    if on_cpu_engine:
        plan = replace(plan, path=whole_name(plan.path))
        refuse_for_cpu_engine(plan.path)
        arguments = take_engine_arguments(kwargs, unsloth_class.from_pretrained)
    kwargs["fast_inference"] = fast_inference and has_gpu
    if on_cpu_engine or (not has_gpu and plan.spec and plan.spec.is_embedded):
        dtype = dtype or "float32"  # As in the files: the same tokens on every CPU.
    which = {name: kwargs.get(name) for name in ("revision", "cache_dir", "token")}
    share = fast_inference * kwargs.get("gpu_memory_utilization", 0.5)
    make_room(needed_mib(plan, share))

    def load(**where: Any) -> tuple[Any, Any]:
        set_threads(plan)
        with (
            explained(plan, settings),
            announced(f"Loading {plan.name}") as stage,
            finishing(f"the load of {plan.name}"),
            quiet(settings),
        ):
            loaded = unsloth_class.from_pretrained(
                plan.path, max_seq_length, dtype, plan.in_4bit, *args, **kwargs, **where
            )
            if on_cpu_engine:
                stage("starting vLLM's engine")
                loaded[0].vllm_engine = load_cpu_engine(plan, dtype, arguments, which)
        try:
            return loaded
        finally:
            del loaded  # vLLM keeps the frames of the load, with their variables.

    sources = load, plan, local_files_only, which
    return _make_safe(*_from_here_or_hub(*sources), plan, is_loud(settings))


def _make_safe(
    model: Any, tokenizer: Any, plan: LoadPlan, show_progress: bool
) -> tuple[Any, Any]:
    """Announce each generation, and keep the engine usable after an interrupt."""
    model.load_plan = plan
    if engine := getattr(model, "vllm_engine", None):
        engine.load_plan = plan
        model.fast_generate = announced("Generating")(
            interruptible(engine, show_progress)
        )
    if callable(getattr(model, "generate", None)):
        model.generate = announced("Generating")(model.generate)
    return model, tokenizer


def _from_here_or_hub(
    load: Callable[..., tuple[Any, Any]],
    plan: LoadPlan,
    only_here: bool,
    which: dict[str, Any],
) -> tuple[Any, Any]:
    """Load what is on this machine without a question, else ask the hub, once."""
    from huggingface_hub import is_offline_mode

    settings, path, adapter = load_settings(), plan.path, None
    if base := adapter_base(path):
        path, adapter, which = base, Path(path), {"token": which["token"]}

    def find_checked() -> Path | None:
        folder = find_folder(path, adapter, **which)
        if folder is not None:
            if plan.device == "cuda":
                warn_of_stretching(folder, plan.name, plan.max_seq_length or 0)
            with quiet(settings):
                check_tensors(folder, adapter)
        return folder

    folder, why = find_checked(), "local_files_only=True"
    if is_offline_mode():
        only_here, why = True, "HF_HUB_OFFLINE"
    if Path(path).is_dir():
        return load(local_files_only=only_here)
    if folder is not None:
        try:
            with hub_switched_off():
                return load(local_files_only=True)
        except ModelNotCachedError:
            if only_here:
                raise  # Else Unsloth wants another repository: download.
    elif only_here:
        raise not_cached(path, f"{why} forbids to ask the hub")
    print(f"Downloading {path}, once (LOG_LEVEL=info shows the progress).")
    with explained(replace(plan, path=path), settings):
        ask_hub(path, which.get("revision"), which["token"])
    try:
        return load()  # In no variable: see `load`.
    finally:
        find_checked()
