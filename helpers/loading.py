"""`FastLanguageModel`, the same on a GPU and without one.

    from helpers import FastLanguageModel

That line imports unsloth (first, as it must be) and gives a subclass of its
`FastLanguageModel` which adds four things and leaves all else to Unsloth:

- "tiny-thinker" is a model name;
- with no GPU, `fast_inference=True` loads vLLM's CPU engine, and sets
  `model.vllm_engine` and `model.fast_generate` as Unsloth does on CUDA;
- a KeyboardInterrupt in `fast_generate` leaves an engine that still works;
- failures whose cause is known say what to do about them.

It is quiet: LOG_LEVEL=debug (or info) brings the engines' own output back.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .devices import list_gpus, runs_cuda
from .engine import (
    ENGINE_DEFAULTS,
    LORA_DEFAULTS,
    STEP_TOKENS,
    hide_unusable_extension,
    load_cpu_engine,
    require_vllm,
)
from .errors import (
    EngineUnavailableError,
    ImportOrderWarning,
    ModelLoadError,
    ModelNotFoundError,
    causes,
    explain_load,
    explaining_memory,
    not_cached,
)
from .interrupts import finishing, interruptible
from .models import MODELS, TINY_THINKER, UnknownModelError, get_model
from .quiet import is_loud, quiet, quieten_packages
from .settings import AUTO, Settings, load_settings

if TYPE_CHECKING:
    from unsloth import FastLanguageModel

__all__ = [
    "FastLanguageModel",
    "detect_device",
    "is_here",
    "resolve_model_path",
    "resolve_settings",
]


# Unsloth patches these as it is imported: what was imported before keeps its old code.
_PATCHED_BY_UNSLOTH = ("transformers", "trl", "vllm")
# Where CI is set torch takes operators whose outputs share memory for errors, and the
# code that Unsloth compiles has some.
_ALIASING = "TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING"
# What says which weights to load, and vLLM's name for it.
_SHARED = {
    "cache_dir": "download_dir",
    "revision": "revision",
    "token": "hf_token",
    "trust_remote_code": "trust_remote_code",
}
GPU_MODEL = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
_QUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")


def __getattr__(name: str) -> Any:
    if name != "FastLanguageModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _fast_language_model()
    return globals()[name]


def _fast_language_model() -> type:
    """Import unsloth and make the class that this module is for."""
    settings = load_settings()
    with finishing("the import of unsloth"):
        unsloth = _import_unsloth(settings)
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


def _level_of_the_import() -> int:
    """How many frames up the reader's own import is, seen from the caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals["__name__"] in (__name__, "lazy_loader"):
        frame, level = frame.f_back, level + 1
    return level


def _import_unsloth(settings: Settings) -> types.ModuleType:
    if "unsloth" not in sys.modules:
        early = [name for name in _PATCHED_BY_UNSLOTH if name in sys.modules]
        if early:
            warnings.warn(
                f"{', '.join(early)} imported before unsloth, which then can't speed "
                "it up. Restart the kernel and make "
                '"from helpers import FastLanguageModel" the first import.',
                ImportOrderWarning,
                stacklevel=_level_of_the_import(),
            )
        settings.apply()
        os.environ.setdefault(_ALIASING, "0")
        hide_unusable_extension()
    with quiet(settings):
        try:
            import unsloth
        except ImportError as error:
            raise EngineUnavailableError(
                f"unsloth can't be imported ({error}). `python -m helpers` says what "
                "is wrong with this environment; `make setup` builds a sound one."
            ) from error
    # Releases of torch without the variable keep one value for the whole process.
    sys.modules["torch"]._functorch.config.error_on_custom_op_aliasing = False
    if not is_loud(settings):
        quieten_packages()
    return unsloth


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
    """`FastLanguageModel.from_pretrained`; see the module's docstring.

    `max_seq_length` is in tokens, prompt and completion together. `max_loras` is how
    many adapters one batch may use, `max_lora_rank` their largest rank; without a GPU
    vLLM takes adapters only where one of the two is given. With no GPU and
    `fast_inference=True` neither engine is quantised, whatever `load_in_4bit` says:
    vLLM's CPU build has no 4-bit kernels, and both shall give the same tokens.

    Raises `ModelLoadError` or one of its subclasses, `UnknownModelError` for a name
    that is no path and no supported model.
    """
    settings, handled = load_settings(), sys.exception()
    path = resolve_model_path(model_name)
    if fast_inference:
        require_vllm(load_in_4bit and has_gpu)
    on_cpu_engine = fast_inference and not has_gpu
    if on_cpu_engine:
        load_in_4bit = False
        if not Path(path).is_dir():
            path = _QUANTISED.sub("", path)  # As Unsloth does by itself on a CPU.
    if load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise EngineUnavailableError(
            "load_in_4bit=True needs bitsandbytes, which is not installed. "
            "`pip install bitsandbytes`, or set LOAD_IN_4BIT=false."
        )
    if not has_gpu and dtype is None and path == MODELS[TINY_THINKER].path:
        dtype = "float32"  # As it was trained: the same tokens on every CPU.
    engine_arguments = {}
    if on_cpu_engine:
        dtype = dtype or "float32"
        engine_arguments = {
            name: kwargs.pop(name, default) for name, default in ENGINE_DEFAULTS.items()
        }
        engine_arguments["seed"] = kwargs.get("random_state", 3407)
        engine_arguments |= {
            theirs: kwargs[name] for name, theirs in _SHARED.items() if name in kwargs
        }
        engine_arguments["max_num_batched_tokens"] = kwargs.pop(
            "max_num_batched_tokens", max(STEP_TOKENS, max_seq_length)
        )
        if LORA_DEFAULTS.keys() & kwargs.keys():
            engine_arguments["enable_lora"] = True
            for name, default in LORA_DEFAULTS.items():
                engine_arguments[name] = kwargs.pop(name, default)
    else:
        kwargs["fast_inference"] = fast_inference
    if "cache_dir" not in kwargs and not is_here(path):
        if kwargs.get("local_files_only") or _is_offline():
            raise not_cached(path)  # Unsloth would ask the hub, several times.
        print(f"Downloading {path}, once (LOG_LEVEL=info shows the progress).")
    try:
        with finishing(f"the load of {model_name}"), quiet(settings):
            model, tokenizer = unsloth_class.from_pretrained(
                path, max_seq_length, dtype, load_in_4bit, *args, **kwargs
            )
            if on_cpu_engine:
                model.vllm_engine = load_cpu_engine(
                    path, dtype, max_seq_length, engine_arguments
                )
    except ModelLoadError:
        raise
    except Exception as error:
        chain = causes(error, handled)
        known = explain_load(chain, path, max_seq_length, load_in_4bit, settings)
        if known is None:
            raise
        raise known from error
    if engine := getattr(model, "vllm_engine", None):
        model.fast_generate = interruptible(engine, show_progress=is_loud(settings))
    if callable(getattr(model, "generate", None)):
        model.generate = explaining_memory(model.generate)
    return model, tokenizer


def resolve_model_path(model_name: str | os.PathLike) -> str:
    """What to load for a name: a directory, a supported model's path, a hub path.

    Raises `UnknownModelError` for a name that is none of these and `ModelNotFoundError`
    for a directory (it begins with ".", "/" or "~") that is not there.
    """
    name = os.fspath(model_name)
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no directory {name}.")
    try:
        path = get_model(name).path
    except KeyError:
        if name.count("/") == 1:
            return name  # Not in our table, but perhaps on the hub.
        raise
    if path == MODELS[TINY_THINKER].path and not Path(path).is_dir():
        raise ModelNotFoundError(
            f"the files of {TINY_THINKER} are missing from this installation. "
            "`git checkout -- helpers/tiny_thinker/model` brings them back, "
            "`python -m tools.tiny_thinker.train` makes them anew."
        )
    return path


def is_here(path: str) -> bool:
    """Whether all weights of a path are on this machine already.

    Those of the repository that Unsloth may take in its place count too: for a model in
    16 bits one that is quantised, and the other way round.
    """
    if Path(path).is_dir():
        return True
    whole = _QUANTISED.sub("", path)
    names = (whole, f"{whole}-bnb-4bit", f"{whole}-unsloth-bnb-4bit")
    return any(_is_cached(name) for name in names)


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, "model.safetensors.index.json")
    files = {"model.safetensors"}
    if isinstance(index, str):
        files = set(json.loads(Path(index).read_text())["weight_map"].values())
    return all(isinstance(try_to_load_from_cache(repository, f), str) for f in files)


def _is_offline() -> bool:
    """Whether the hub is switched off (HF_HUB_OFFLINE, read as it is imported)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def detect_device(settings: Settings | None = None) -> Literal["cuda", "cpu"]:
    """Where the engines will run; imports no torch, starts no CUDA.

    DEVICE decides where it is set. Otherwise "cuda" where there is a visible GPU, a
    PyTorch built for CUDA, and a driver that is new enough for that build.
    Without `settings` they are read; raises `SettingsError` as `load_settings` does.
    """
    device = (load_settings() if settings is None else settings).device
    if device != AUTO:
        return device
    return "cuda" if runs_cuda() and list_gpus() else "cpu"


def resolve_settings(settings: Settings) -> Settings:
    """The same settings with each "auto" replaced by what suits this machine."""
    device = detect_device(settings)
    name = settings.model_name
    if name == AUTO:
        name = GPU_MODEL if device == "cuda" else TINY_THINKER
    in_4bit = settings.load_in_4bit
    if in_4bit is None:
        in_4bit = not _is_tiny(name)
    return replace(settings, device=device, model_name=name, load_in_4bit=in_4bit)


def _is_tiny(name: str) -> bool:
    # Neither is it one whose files are missing; the row on the model tells.
    with contextlib.suppress(UnknownModelError, ModelLoadError):
        return resolve_model_path(name) == MODELS[TINY_THINKER].path
    return False
