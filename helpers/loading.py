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
from unittest import mock

from .internals.engine import cpu
from .internals.engine.errors import LoadPlan, explained, not_cached
from .internals.engine.exceptions import ModelLoadError, ModelNotCachedError
from .internals.engine.hub import ask_hub, find_folder
from .internals.engine.plan import adapter_base, needed_mib, plan_load
from .internals.engine.quiet import announced, is_loud, quiet
from .internals.engine.stop import finishing, interruptible
from .internals.engine.weights import check_tensors, warn_of_stretching
from .internals.machine.settings import load_settings
from .kernel import make_room
from .models import TINY_THINKER, whole_name

if TYPE_CHECKING:
    from unsloth import FastLanguageModel as FastLanguageModel


def __getattr__(name: str) -> Any:
    """Import unsloth and make the class, when it is first asked for."""
    if name != "FastLanguageModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = load_settings()
    with announced("Importing Unsloth"), finishing("the import of unsloth"):
        unsloth = cpu.import_unsloth(settings)
    has_gpu = not getattr(unsloth, "_IS_CPU_BACKEND", False)
    if settings.device == "cuda" and not has_gpu:
        way = "`python -m helpers` says why; DEVICE=auto takes the CPU instead."
        raise ModelLoadError(f"DEVICE=cuda, but Unsloth finds no usable GPU. {way}")
    own = unsloth.FastLanguageModel
    load = functools.partial(_from_pretrained, own, has_gpu)
    load = staticmethod(functools.wraps(own.from_pretrained)(load))
    members = {"__module__": __name__, "from_pretrained": load}
    return globals().setdefault(name, type(name, (own,), members))


def _from_pretrained(
    unsloth_class: Any,
    has_gpu: bool,
    model_name: str | os.PathLike = TINY_THINKER,
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
    cpu.require_packages(fast_inference, load_in_4bit)
    if on_cpu_engine:
        plan = replace(plan, path=whole_name(plan.path))
        cpu.refuse_for_engine(plan.path)
        arguments = cpu.take_engine_arguments(kwargs, unsloth_class.from_pretrained)
    kwargs["fast_inference"] = fast_inference and has_gpu
    if on_cpu_engine or (not has_gpu and plan.spec and plan.spec.is_embedded):
        dtype = dtype or "float32"  # As in the files: the same tokens on every CPU.
    which = {name: kwargs.get(name) for name in ("revision", "cache_dir", "token")}
    share = fast_inference * kwargs.get("gpu_memory_utilization", 0.5)
    make_room(needed_mib(plan, share))

    def load(**where: Any) -> tuple[Any, Any]:
        cpu.set_threads(plan)
        with (
            explained(plan, settings),
            announced(f"Loading {plan.name}"),
            finishing(f"the load of {plan.name}"),
            quiet(settings),
        ):
            loaded = unsloth_class.from_pretrained(
                plan.path, max_seq_length, dtype, plan.in_4bit, *args, **kwargs, **where
            )
            if on_cpu_engine:
                loaded[0].vllm_engine = cpu.load_engine(plan, dtype, arguments, which)
        try:
            return loaded
        finally:
            del loaded  # vLLM keeps the frames of the load, with their variables.

    sources = load, plan, local_files_only, which
    return _make_safe(*_from_here_or_hub(*sources), is_loud(settings))


def _make_safe(model: Any, tokenizer: Any, show_progress: bool) -> tuple[Any, Any]:
    """Announce each generation, and keep the engine usable after an interrupt."""
    generating = announced("Generating")
    if engine := getattr(model, "vllm_engine", None):
        model.fast_generate = generating(interruptible(engine, show_progress))
    if hasattr(model, "generate"):
        model.generate = generating(model.generate)
    return model, tokenizer


def _from_here_or_hub(
    load: Callable, plan: LoadPlan, only_here: bool, which: dict[str, Any]
) -> tuple[Any, Any]:
    """Load what is on this machine without a question, else ask the hub, once."""
    from huggingface_hub import is_offline_mode

    settings, path, adapter = load_settings(), plan.path, None
    if base := adapter_base(path):
        path, adapter, which = base, Path(path), {"token": which["token"]}

    def find_checked() -> Path | None:
        if folder := find_folder(path, adapter, **which):
            if plan.device == "cuda":
                warn_of_stretching(folder, plan.name, plan.max_seq_length or 0)
            with quiet(settings):
                check_tensors(folder, adapter)
        return folder

    is_here, only_here = find_checked() is not None, only_here or is_offline_mode()
    if Path(path).is_dir():
        return load(local_files_only=only_here)
    if only_here and not is_here:
        why = "local_files_only=True or HF_HUB_OFFLINE forbids to ask the hub"
        raise not_cached(path, why)
    if is_here:
        try:
            # Libraries that are not told `local_files_only` read this.
            with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
                return load(local_files_only=True)
        except ModelNotCachedError:
            if only_here:
                raise  # Else Unsloth wants another repository: download.
    print(f"Downloading {path}, once (LOG_LEVEL=info shows the progress).")
    with explained(replace(plan, path=path), settings):
        ask_hub(path, which.get("revision"), which["token"])
    try:
        return load()  # In no variable: see `load`.
    finally:
        find_checked()
