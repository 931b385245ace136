"""`FastLanguageModel`, the same on a GPU and without one.

    from helpers import FastLanguageModel

That line imports unsloth (first, as it must be) and gives a subclass of its
`FastLanguageModel` which adds four things and leaves all else to Unsloth:

- "tiny-thinker" and "smollm2" are model names;
- with no GPU, `fast_inference=True` loads vLLM's CPU engine, and sets
  `model.vllm_engine` and `model.fast_generate` as Unsloth does on CUDA; nothing is
  quantised then, and adapters are taken with `max_loras` (how many in one batch) or
  `max_lora_rank` (the largest of them) given;
- a KeyboardInterrupt in `fast_generate` leaves an engine that still works;
- failures whose cause is known say what to do about them.

It is quiet: LOG_LEVEL=debug (or info) brings the engines' own output back.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
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
from .internals.engine.errors import (
    LoadPlan,
    explained,
    not_cached,
)
from .internals.engine.exceptions import ModelLoadError, ModelNotCachedError
from .internals.engine.hub import ask_hub, find_folder, find_snapshot, hub_switched_off
from .internals.engine.plan import adapter_base, needed_mib, plan_load
from .internals.engine.quiet import announced, is_loud, quiet
from .internals.engine.stop import finishing, interruptible
from .internals.engine.weights import check_files, check_tensors
from .internals.machine.settings import Settings, load_settings
from .kernel import make_room
from .models import TINY_THINKER, is_embedded, whole_name

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


@contextlib.contextmanager
def _watched(plan: LoadPlan, settings: Settings) -> Iterator[Callable[[str], None]]:
    """Show how far the load is in the place of what the engines print."""
    set_threads(plan)
    loading = finishing(f"the load of {plan.name}")
    with announced(f"Loading {plan.name}") as stage, loading, quiet(settings):
        yield stage


def _from_pretrained(
    unsloth_class: Any,
    has_gpu: bool,
    model_name: str | os.PathLike,
    max_seq_length: int | None = 2048,
    dtype: Any = None,
    load_in_4bit: bool = True,
    *args: Any,
    fast_inference: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer; raise `ModelLoadError` or `UnknownModelError`."""
    settings, device = load_settings(), "cuda" if has_gpu else "cpu"
    plan = plan_load(model_name, device, load_in_4bit, max_seq_length)
    on_cpu_engine = fast_inference and not has_gpu
    if on_cpu_engine:  # As Unsloth does on a CPU.
        plan = replace(plan, path=whole_name(plan.path), in_4bit=False)
        refuse_for_cpu_engine(plan.path)
    require_packages(fast_inference, plan.in_4bit)
    if on_cpu_engine:
        arguments = take_engine_arguments(kwargs, unsloth_class.from_pretrained)
    else:
        kwargs["fast_inference"] = fast_inference
    if on_cpu_engine or (not has_gpu and is_embedded(plan.path)):
        dtype = dtype or "float32"  # As in the files: the same tokens on every CPU.
    only_here = kwargs.pop("local_files_only", False)
    which = {name: kwargs.get(name) for name in ("revision", "cache_dir")}
    share = kwargs.get("gpu_memory_utilization", 0.5) if fast_inference else 0.0
    make_room(needed_mib(plan, share))

    def load(**where: Any) -> tuple[Any, Any]:
        with explained(plan, settings), _watched(plan, settings) as stage:
            loaded = unsloth_class.from_pretrained(
                plan.path, max_seq_length, dtype, plan.in_4bit, *args, **kwargs, **where
            )
            if on_cpu_engine:
                folder = find_snapshot(plan.path, **which) or plan.path
                stage("starting vLLM's engine")
                loaded[0].vllm_engine = load_cpu_engine(
                    folder, dtype, max_seq_length, arguments
                )
        try:
            return loaded
        finally:
            del loaded  # vLLM keeps the frames of the load, with their variables.

    token = kwargs.get("token")
    return _make_safe(
        *_from_here_or_hub(load, plan, only_here, token, **which), plan, settings
    )


def _make_safe(
    model: Any, tokenizer: Any, plan: LoadPlan, settings: Settings
) -> tuple[Any, Any]:
    """Announce each generation, and keep the engine usable after an interrupt."""
    model.load_plan = plan
    if engine := getattr(model, "vllm_engine", None):
        engine.load_plan = plan
        fast_generate = interruptible(engine, show_progress=is_loud(settings))
        model.fast_generate = announced("Generating")(fast_generate)
    if callable(getattr(model, "generate", None)):
        model.generate = announced("Generating")(model.generate)
    return model, tokenizer


def _from_here_or_hub(
    load: Callable[..., tuple[Any, Any]],
    plan: LoadPlan,
    only_here: bool,
    token: str | bool | None,
    **which: str | None,
) -> tuple[Any, Any]:
    """Load what is on this machine without a question, else ask the hub, once."""
    from huggingface_hub import is_offline_mode

    settings = load_settings()

    def check(folder: Path | None) -> None:
        if folder is not None:
            check_files(folder)
            with quiet(settings):
                check_tensors(folder, None if base is None else Path(plan.path))

    why = "HF_HUB_OFFLINE" if is_offline_mode() else "local_files_only=True"
    only_here = only_here or is_offline_mode()
    path, base = plan.path, adapter_base(plan.path)
    if base is not None:
        check_files(Path(path))
        path, which = base, {}
    folder = find_folder(path, **which)
    check(folder)
    if Path(path).is_dir():
        return load(**({"local_files_only": True} if only_here else {}))
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
        ask_hub(path, which.get("revision"), token)
    loaded = load()
    check(find_folder(path, **which))
    return loaded
