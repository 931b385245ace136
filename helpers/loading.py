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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .internals.engine.cpu import (
    import_unsloth,
    load_cpu_engine,
    refuse_adapter,
    require_packages,
    take_engine_arguments,
)
from .internals.engine.errors import (
    ModelLoadError,
    ModelNotCachedError,
    explained,
    explaining_memory,
    not_cached,
)
from .internals.engine.hub import (
    adapter_base,
    ask_hub,
    check_files,
    find_folder,
    find_snapshot,
    hub_switched_off,
    resolve_model_path,
)
from .internals.engine.plan import needed_mib
from .internals.engine.quiet import announced, is_loud, quiet
from .internals.engine.stop import finishing, interruptible
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


def _label(name: Any) -> str:
    """The name as a notebook shows it: of a folder without where it lies."""
    folder = Path(name).expanduser()
    return folder.name if folder.is_dir() else str(name)


@contextlib.contextmanager
def _loading(name: Any, settings: Settings) -> Iterator[Callable[[str], None]]:
    """Say how far the load is, in the place of what the engines print."""
    label, loading = _label(name), finishing(f"the load of {name}")
    with announced(f"Loading {label}") as stage, loading, quiet(settings):
        yield stage


def _from_pretrained(
    unsloth_class: Any,
    has_gpu: bool,
    model_name: str | os.PathLike,
    max_seq_length: int = 2048,
    dtype: Any = None,
    load_in_4bit: bool = True,
    *args: Any,
    fast_inference: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer; raise `ModelLoadError` or `UnknownModelError`."""
    settings, path = load_settings(), resolve_model_path(model_name)
    on_cpu_engine = fast_inference and not has_gpu
    if on_cpu_engine:
        load_in_4bit, path = False, whole_name(path)  # As Unsloth does on a CPU.
        refuse_adapter(path)
    require_packages(fast_inference, load_in_4bit)
    if on_cpu_engine:
        arguments = take_engine_arguments(kwargs, unsloth_class.from_pretrained)
    else:
        kwargs["fast_inference"] = fast_inference
    if on_cpu_engine or (not has_gpu and is_embedded(path)):
        dtype = dtype or "float32"  # As in the files: the same tokens on every CPU.
    only_here = kwargs.pop("local_files_only", False)
    which = {name: kwargs.get(name) for name in ("revision", "cache_dir")}
    explain = functools.partial(explained, path, max_seq_length, load_in_4bit, settings)
    share = kwargs.get("gpu_memory_utilization", 0.5) if fast_inference else 0.0
    make_room(needed_mib(path, max_seq_length, load_in_4bit, share))

    def load(**where: Any) -> tuple[Any, Any]:
        with explain(), _loading(model_name, settings) as stage:
            loaded = unsloth_class.from_pretrained(
                path, max_seq_length, dtype, load_in_4bit, *args, **kwargs, **where
            )
            if on_cpu_engine:
                folder = find_snapshot(path, **which) or path
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
        *_from_here_or_hub(load, explain, path, only_here, token, **which), settings
    )


def _make_safe(model: Any, tokenizer: Any, settings: Settings) -> tuple[Any, Any]:
    """Have it say that it generates, and go on working after an interrupt."""
    if engine := getattr(model, "vllm_engine", None):
        fast_generate = interruptible(engine, show_progress=is_loud(settings))
        model.fast_generate = announced("Generating")(fast_generate)
    if callable(getattr(model, "generate", None)):
        model.generate = announced("Generating")(explaining_memory(model.generate))
    return model, tokenizer


def _from_here_or_hub(
    load: Callable[..., tuple[Any, Any]],
    explain: Callable[[], AbstractContextManager],
    path: str,
    only_here: bool,
    token: str | bool | None,
    **which: str | None,
) -> tuple[Any, Any]:
    """Load what is on this machine without a question, else ask the hub, once."""
    from huggingface_hub import is_offline_mode

    why = "HF_HUB_OFFLINE" if is_offline_mode() else "local_files_only=True"
    only_here = only_here or is_offline_mode()
    base = adapter_base(path)
    if base is not None:
        check_files(Path(path))
        path, which = base, {}
    folder = find_folder(path, **which)
    if folder is not None:
        check_files(folder)
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
    with explain():
        ask_hub(path, which.get("revision"), token)
    return load()
