"""What can go wrong with a model, as errors that say what to do about it."""

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from .devices import current_gpu, free_memory_mib
from .models import MODELS, TINY_THINKER, estimate_memory, nearest_models
from .settings import Settings

CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
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


def causes(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """An error and all that it came from, without what the caller was handling."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current not in (None, handled, *found):
            found.append(current)
            todo += [current.__context__, current.__cause__]
    return found


def is_out_of_memory(chain: list[BaseException]) -> bool:
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or (isinstance(one, Exception) and _OUT_OF_MEMORY.search(str(one)))
        for one in chain
    )


def explain_load(
    chain: list[BaseException],
    path: str,
    max_seq_length: int,
    load_in_4bit: bool,
    settings: Settings,
) -> ModelLoadError | None:
    """The error to raise instead, where the cause is known."""
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    text = " ".join(map(str, chain))
    if is_out_of_memory(chain):
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
        return not_cached(path)
    if {"ImportError", "PackageNotFoundError"} & names and "bitsandbytes" in text:
        return EngineUnavailableError(
            f"4-bit weights need a working bitsandbytes: {chain[0]}. "
            "`pip install -U bitsandbytes`, or set LOAD_IN_4BIT=false."
        )
    return None


def not_cached(path: str) -> ModelNotCachedError:
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
            f" {verb} {CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB), or lower "
            f"MAX_SEQ_LENGTH ({max_seq_length})."
        )
    return NotEnoughMemoryError(
        f"{message} Other kernels that hold memory show up in JupyterLab's list of "
        "running kernels."
    )


def generation_memory_error(what: str, advice: str) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"out of memory while generating for {what}: {free_memory_mib():,} MiB are "
        f"free. {advice}"
    )


def explaining_memory(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`model.generate`, with a memory error that says what to lower."""

    @functools.wraps(generate)
    def explained(*args: Any, **kwargs: Any) -> Any:
        handled = sys.exception()
        try:
            return generate(*args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(causes(error, handled)):
                raise
            ids = kwargs.get("input_ids", args[0] if args else None)
            shape = tuple(getattr(ids, "shape", ()))
            copies = kwargs.get("num_return_sequences", 1)
            raise generation_memory_error(
                f"input of shape {shape}, {copies} completions each",
                "Send fewer prompts at a time, or lower max_new_tokens.",
            ) from error

    return explained
