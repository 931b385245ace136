"""`FastLanguageModel`, the same on a GPU and without one.

    from helpers.loading import FastLanguageModel

That line imports unsloth (first, as it must be) and gives a subclass of its
`FastLanguageModel` which adds four things and leaves all else to Unsloth:

- "tiny-thinker" is a model name;
- with no GPU, `fast_inference=True` loads vLLM's CPU engine, and sets
  `model.vllm_engine` and `model.fast_generate` as Unsloth does on CUDA;
- a KeyboardInterrupt in `fast_generate` leaves an engine that still works;
- failures whose cause is known say what to do about them.

It is quiet: LOG_LEVEL=debug (or info) brings the engines' own output back.
"""

import functools
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .memory import MIB, current_gpu
from .models import (
    MODELS,
    TINY_THINKER,
    estimate_memory,
    get_model,
    nearest_models,
)
from .settings import Settings, load_settings

if TYPE_CHECKING:
    from unsloth import FastLanguageModel

__all__ = [
    "EngineUnavailableError",
    "FastLanguageModel",
    "GatedModelError",
    "ImportOrderWarning",
    "ModelLoadError",
    "ModelNotCachedError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
]

# Unsloth patches these as it is imported: what was imported before keeps its old code.
_PATCHED_BY_UNSLOTH = ("transformers", "trl", "vllm")
# Arguments of from_pretrained that are vLLM's alone on a CPU, with Unsloth's defaults.
_ENGINE_DEFAULTS = {
    "disable_log_stats": True,
    "max_logprobs": 0,
    "max_num_seqs": 256,
    "enable_prefix_caching": True,
    "enforce_eager": True,  # Loads in seconds; compiling gains little on a CPU.
    # A chunk in mid-prompt rewinds a seeded generator, which those of a CPU can't.
    "enable_chunked_prefill": False,
}
# What says which weights to load, and vLLM's name for it.
_SHARED = {
    "cache_dir": "download_dir",
    "revision": "revision",
    "token": "hf_token",
    "trust_remote_code": "trust_remote_code",
}
STEP_TOKENS = 4096  # of prompts in one step of the CPU engine: vLLM's own default
_CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
# With one of these the CPU engine can take adapters. Unsloth's engine always can; here
# it costs speed, so only where it is asked for. Their defaults are Unsloth's.
_LORA_DEFAULTS = {"max_lora_rank": 64, "max_loras": 1}
_QUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|No available memory for the cache"
    r"|Free memory on device|KV cache is needed|less than requested memory for kv"
    r"|less than desired CPU memory",
    re.IGNORECASE,
)


class ImportOrderWarning(UserWarning):
    """Something that unsloth patches was imported before unsloth."""


class ModelLoadError(RuntimeError):
    """A model can't be loaded, for a reason that the message tells."""


class ModelNotFoundError(ModelLoadError):
    """The hub has no such model, or does not show it to this user."""


class ModelNotCachedError(ModelLoadError):
    """The model is not on this machine, and the hub can't be reached."""


class GatedModelError(ModelLoadError):
    """The model's terms must be accepted first, or the token is missing."""


class EngineUnavailableError(ModelLoadError, ImportError):
    """A package that the load needs is missing or broken."""


class NotEnoughMemoryError(ModelLoadError, MemoryError):
    """The load or the generation ran out of memory; the message says what to lower."""


def __getattr__(name: str) -> Any:
    if name != "FastLanguageModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _fast_language_model()
    return globals()[name]


def _fast_language_model() -> type:
    """Import unsloth and make the class that this module is for."""
    settings = load_settings()
    if "unsloth" not in sys.modules:
        early = [name for name in _PATCHED_BY_UNSLOTH if name in sys.modules]
        if early:
            warnings.warn(
                f"{', '.join(early)} imported before unsloth, which then can't speed "
                "it up. Restart the kernel and make "
                '"from helpers.loading import FastLanguageModel" the first import.',
                ImportOrderWarning,
                stacklevel=3,
            )
        settings.apply()
        _hide_unusable_extension()
    with _quiet(settings):
        try:
            import unsloth
        except ImportError as error:
            raise EngineUnavailableError(
                f"unsloth can't be imported ({error}). `python -m helpers` says what "
                "is wrong with this environment; `make setup` builds a sound one."
            ) from error
    has_gpu = not getattr(unsloth, "_IS_CPU_BACKEND", False)
    if settings.device == "cuda" and not has_gpu:
        raise ModelLoadError(
            "DEVICE=cuda, but Unsloth finds no usable GPU. `python -m helpers` says "
            "why; DEVICE=auto takes the CPU instead."
        )
    if not _is_loud(settings):
        import transformers.utils.logging

        for package in ("bitsandbytes", "torch", "transformers", "unsloth", "vllm"):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        # Both write past whatever `_quiet` holds back, at a later load.
        logging.getLogger("torch").setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()

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
        _require_vllm(load_in_4bit and has_gpu)
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
            name: kwargs.pop(name, default)
            for name, default in _ENGINE_DEFAULTS.items()
        }
        engine_arguments["seed"] = kwargs.get("random_state", 3407)
        engine_arguments |= {
            theirs: kwargs[name] for name, theirs in _SHARED.items() if name in kwargs
        }
        engine_arguments["max_num_batched_tokens"] = kwargs.pop(
            "max_num_batched_tokens", max(STEP_TOKENS, max_seq_length)
        )
        if _LORA_DEFAULTS.keys() & kwargs.keys():
            engine_arguments["enable_lora"] = True
            for name, default in _LORA_DEFAULTS.items():
                engine_arguments[name] = kwargs.pop(name, default)
    else:
        kwargs["fast_inference"] = fast_inference
    if "cache_dir" not in kwargs and not is_here(path):
        if kwargs.get("local_files_only") or _is_offline():
            raise _not_cached(path)  # Unsloth would ask the hub, several times.
        print(f"Downloading {path}, once (LOG_LEVEL=info shows the progress).")
    try:
        with _quiet(settings):
            model, tokenizer = unsloth_class.from_pretrained(
                path, max_seq_length, dtype, load_in_4bit, *args, **kwargs
            )
            if on_cpu_engine:
                model.vllm_engine = _load_cpu_engine(
                    path, dtype, max_seq_length, engine_arguments
                )
    except ModelLoadError:
        raise
    except Exception as error:
        chain = _chain(error, handled)
        known = _explain_load(chain, path, max_seq_length, load_in_4bit, settings)
        if known is None:
            raise
        raise known from error
    if engine := getattr(model, "vllm_engine", None):
        model.fast_generate = interruptible(engine, show_progress=_is_loud(settings))
    if callable(getattr(model, "generate", None)):
        model.generate = _explaining_memory(model.generate)
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
            "`python -m helpers.tiny_thinker.train` makes them anew."
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


# --- vLLM -----------------------------------------------------------------------------


def _load_cpu_engine(
    path: str, dtype: Any, max_seq_length: int, arguments: dict[str, Any]
) -> Any:
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except (ImportError, OSError) as error:
        raise EngineUnavailableError(
            f"vLLM is installed but can't be imported ({error}). `python -m helpers` "
            "says what is wrong; fast_inference=False works without it."
        ) from error
    if not current_platform.is_cpu():
        raise EngineUnavailableError(
            "fast_inference=True without a GPU needs vLLM's CPU build, and another is "
            "installed. Use fast_inference=False, or install requirements/cpu.txt."
        )
    if arguments.get("enable_lora"):
        _spare_prompts_without_adapter()
    # vLLM compiles its smaller functions as they are first called, which takes half a
    # minute and a C++ compiler.
    current_platform.simple_compile_backend = "eager"
    return LLM(
        model=path,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=max_seq_length,
        use_tqdm_on_load=False,
        **arguments,
    )


def _spare_prompts_without_adapter() -> None:
    """Mend vLLM's CPU code for adapters: a prompt without one got the last one.

    It marks such a prompt with -1 and uses that as an index, in all of
    vllm/lora/ops/torch_ops/lora_ops.py; the GPU's kernels skip it.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink = lora_ops.bgmv_shrink
    if hasattr(shrink, "__wrapped__"):
        return

    @functools.wraps(shrink)
    def bgmv_shrink(
        inputs: Any, weights: Any, output: Any, lora_indices: Any, scaling: float = 1.0
    ) -> None:
        shrink(inputs, weights, output, lora_indices, scaling)
        output[lora_indices < 0] = 0  # What is expanded from zero adds nothing.

    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink


def _require_vllm(in_4bit: bool) -> None:
    import unsloth.import_fixes

    if reason := getattr(unsloth.import_fixes, "VLLM_DISABLED_REASON", None):
        raise EngineUnavailableError(
            f"fast_inference=True needs vLLM, and the one installed is broken: {reason}"
        )
    if importlib.util.find_spec("vllm") is None:
        raise EngineUnavailableError(
            "fast_inference=True needs vLLM, which is not installed. `make setup` "
            "installs it; fast_inference=False works without it."
        )
    # vLLM has had bitsandbytes in a package of its own since 0.28.
    if in_4bit and _version("vllm") >= (0, 28) and not _version("vllm-bnb-plugin"):
        raise EngineUnavailableError(
            "4-bit weights in vLLM 0.28 and later need vllm-bnb-plugin. "
            "`pip install vllm-bnb-plugin`, or choose a 16-bit model and "
            "LOAD_IN_4BIT=false."
        )


def _version(package: str) -> tuple[int, ...]:
    """Major and minor of an installed package, () where it is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _hide_unusable_extension() -> None:
    """Keep unsloth from loading a build of vLLM's extension that this CPU can't run.

    As unsloth is imported it loads `vllm._C` to see whether vLLM is broken. In a CPU
    build that is the variant for AVX-512 with bfloat16: elsewhere it ends the process
    with SIGILL, or doubles the variant that vLLM picks by itself.
    """
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations or [] if spec else []
    files = [file.name for folder in folders for file in Path(folder).glob("_C*")]
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if extension_is_unusable(files, cpuinfo):
        sys.modules.setdefault("vllm._C", None)


def extension_is_unusable(files: Iterable[str], cpuinfo: str) -> bool:
    """Whether `vllm._C` is built for a CPU, and for a better one than this.

    `files` are the names of vLLM's extension modules, `cpuinfo` the text of
    /proc/cpuinfo. A CUDA build (no AVX2 variant beside it) is never unusable: there
    `vllm._C` holds the GPU's kernels.
    """
    if not any(name.startswith("_C_AVX2") for name in files):
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    # vllm/platforms/cpu.py, import_kernels: the same two questions.
    return not {"avx512f", "avx512_bf16"} <= set(flags[1].split() if flags else ())


def interruptible(engine: Any, show_progress: bool = False) -> Callable[..., list]:
    """`engine.generate` (of a `vllm.LLM`), made safe to interrupt.

    A Ctrl-C (Jupyter's stop button) takes effect between two steps of the engine, and
    aborts what was running: the next call works and returns its own outputs. A second
    Ctrl-C does not wait for the step to end.

    Raises `NotEnoughMemoryError` when the generation runs out of memory.
    """
    core = engine.llm_engine
    step = core.step
    interrupted = threading.Event()

    def step_unless_interrupted() -> Any:
        if interrupted.is_set():
            raise KeyboardInterrupt
        return step()

    core.step = step_unless_interrupted

    @functools.wraps(engine.generate)
    def fast_generate(prompts: Any, *args: Any, **kwargs: Any) -> list:
        kwargs.setdefault("use_tqdm", show_progress)
        handled = sys.exception()
        try:
            with _deferred_interrupt(interrupted):
                return engine.generate(prompts, *args, **kwargs)
        except BaseException as error:
            # Left alone, the next call hangs, or returns these prompts' outputs.
            core.abort_request(
                list(core.output_processor.request_states), internal=True
            )
            if _is_out_of_memory(_chain(error, handled)):
                count = len(prompts) if isinstance(prompts, list | tuple) else 1
                knob = "GPU_MEMORY_UTILIZATION" if current_gpu() else _CPU_CACHE
                raise _generation_memory_error(
                    f"{count} prompts",
                    "vLLM's cache leaves too little beside it: load with a lower "
                    f"{knob}, or end what else takes this memory.",
                ) from error
            raise

    return fast_generate


@contextmanager
def _deferred_interrupt(interrupted: threading.Event) -> Iterator[None]:
    """Turn the first SIGINT into an event, and raise it at the end if nobody did."""
    interrupted.clear()
    handler = signal.getsignal(signal.SIGINT)
    # Signals reach the main thread only, and a handler of None is not Python's.
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return

    def defer(number: int, frame: Any) -> None:
        if interrupted.is_set():
            signal.default_int_handler(number, frame)
        interrupted.set()

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


# --- errors ---------------------------------------------------------------------------


def _chain(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """An error and all that it came from, without what the caller was handling."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current not in (None, handled, *found):
            found.append(current)
            todo += [current.__context__, current.__cause__]
    return found


def _is_out_of_memory(chain: list[BaseException]) -> bool:
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or (isinstance(one, Exception) and _OUT_OF_MEMORY.search(str(one)))
        for one in chain
    )


def _explain_load(
    chain: list[BaseException],
    path: str,
    max_seq_length: int,
    load_in_4bit: bool,
    settings: Settings,
) -> ModelLoadError | None:
    """The error to raise instead, where the cause is known."""
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    text = " ".join(map(str, chain))
    if _is_out_of_memory(chain):
        return _load_memory_error(path, max_seq_length, load_in_4bit, settings, text)
    if "GatedRepoError" in names or "gated repo" in text:
        how = (
            f"accept its terms on https://huggingface.co/{path}"
            if settings.hf_token or os.environ.get("HF_TOKEN")
            else f"accept its terms on https://huggingface.co/{path} and set HF_TOKEN"
        )
        return GatedModelError(f"{path} is gated: {how}.")
    if "RepositoryNotFoundError" in names or "not a valid model identifier" in text:
        near = nearest_models(path)
        return ModelNotFoundError(
            f"the hub has no model {path}, or hides it from you (HF_TOKEN)."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    if names & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectionError",
        "ConnectError",
        "ConnectTimeout",
    }:
        return _not_cached(path)
    if {"ImportError", "PackageNotFoundError"} & names and "bitsandbytes" in text:
        return EngineUnavailableError(
            f"4-bit weights need a working bitsandbytes: {chain[0]}. "
            "`pip install -U bitsandbytes`, or set LOAD_IN_4BIT=false."
        )
    return None


def _not_cached(path: str) -> ModelNotCachedError:
    return ModelNotCachedError(
        f"{path} is not on this machine and the hub can't be reached. Connect to the "
        f"network once, or set MODEL_NAME={TINY_THINKER}, which needs none."
    )


def _load_memory_error(
    path: str,
    max_seq_length: int,
    load_in_4bit: bool,
    settings: Settings,
    text: str,
) -> NotEnoughMemoryError:
    free = free_memory_mib()
    message = f"not enough memory to load {path}: {free:,} MiB are free."
    spec = next((spec for spec in MODELS.values() if spec.path == path), None)
    if spec is not None:
        length = min(max_seq_length, spec.context_length)
        estimate = estimate_memory(spec, length, 1, load_in_4bit)
        if not estimate.fits(free):
            message += f" {estimate.advice(free)}"
    # vLLM asks for more where its share is too small for one long sequence.
    verb = "Raise" if "ncreas" in text else "Lower"
    if current_gpu():
        message += (
            f" {verb} GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization}), or "
            f"lower MAX_SEQ_LENGTH ({max_seq_length})."
        )
    else:
        message += (
            f" {verb} {_CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB), or lower "
            f"MAX_SEQ_LENGTH ({max_seq_length})."
        )
    return NotEnoughMemoryError(
        f"{message} Other kernels that hold memory show up in JupyterLab's list of "
        "running kernels."
    )


def _generation_memory_error(what: str, advice: str) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"out of memory while generating for {what}: {free_memory_mib():,} MiB are "
        f"free. {advice}"
    )


def _explaining_memory(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`model.generate`, with a memory error that says what to lower."""

    @functools.wraps(generate)
    def explained(*args: Any, **kwargs: Any) -> Any:
        handled = sys.exception()
        try:
            return generate(*args, **kwargs)
        except Exception as error:
            if not _is_out_of_memory(_chain(error, handled)):
                raise
            ids = kwargs.get("input_ids", args[0] if args else None)
            shape = tuple(getattr(ids, "shape", ()))
            copies = kwargs.get("num_return_sequences", 1)
            raise _generation_memory_error(
                f"input of shape {shape}, {copies} completions each",
                "Send fewer prompts at a time, or lower max_new_tokens.",
            ) from error

    return explained


def free_memory_mib() -> int:
    """Free memory, in MiB: of the current GPU, else of the machine."""
    gpu = current_gpu()
    return gpu.free_mib if gpu else psutil.virtual_memory().available // MIB


# --- quiet ----------------------------------------------------------------------------


def _is_loud(settings: Settings) -> bool:
    return settings.log_level in ("debug", "info")


class _Mutable:
    """A stand-in for stdout or stderr that can be muted.

    Log handlers made while it is muted keep it, so it must speak again afterwards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.muted: io.StringIO | None = io.StringIO()

    def write(self, text: str) -> int:
        return (self._stream if self.muted is None else self.muted).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _no_displays() -> AbstractContextManager:
    """Hold back what is displayed in a notebook: progress bars are widgets there."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return nullcontext()
    from IPython.utils.capture import capture_output

    return capture_output(stdout=False, stderr=False, display=True)


@contextmanager
def _quiet(settings: Settings) -> Iterator[None]:
    """Hold back what the engines print, at the level of Python and of the process.

    An error that gets out carries the last of it as a note.
    """
    if _is_loud(settings):
        yield
        return
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(), _no_displays():
        warnings.simplefilter("ignore")
        saved = os.dup(1), os.dup(2)
        mutables = tuple(_Mutable(stream) for stream in streams)
        sys.stdout, sys.stderr = mutables
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception as error:
            file.seek(0)
            held = file.read().decode(errors="replace")
            held += "".join(mutable.muted.getvalue() for mutable in mutables)
            if held.strip():
                error.add_note(f"Printed before that:\n{held.strip()[-2000:]}")
            raise
        finally:
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
            for mutable in mutables:
                mutable.muted = None
            sys.stdout, sys.stderr = streams
