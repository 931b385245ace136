"""What can go wrong with a model, as errors that say what to do about it."""

import functools
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .devices import current_gpu, free_memory_mib
from .models import TINY_THINKER, estimate_memory, find_model, nearest_models
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
    """The model's terms must be accepted first, or the token is missing or refused."""


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


@dataclass(frozen=True)
class _Failure:
    """A load that failed: what was to be loaded, and what came of it."""

    path: str
    max_seq_length: int
    load_in_4bit: bool
    settings: Settings
    chain: list[BaseException]

    @cached_property
    def kinds(self) -> set[str]:
        """The names of all classes that the errors belong to."""
        return {kind.__name__ for one in self.chain for kind in type(one).__mro__}

    @cached_property
    def text(self) -> str:
        return " ".join(map(str, self.chain))

    @cached_property
    def response(self) -> Any:
        """What the hub, or a proxy before it, has answered; None for no answer."""
        answers = (getattr(one, "response", None) for one in self.chain)
        return next((answer for answer in answers if answer is not None), None)

    @property
    def status(self) -> int:
        """The HTTP status of the answer, 0 for none."""
        return getattr(self.response, "status_code", 0)


@contextmanager
def explained(
    path: str, max_seq_length: int, load_in_4bit: bool, settings: Settings
) -> Iterator[None]:
    """Raise a `ModelLoadError` that says what to do, where the cause is known."""
    handled = sys.exception()
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        chain = causes(error, handled)
        failure = _Failure(path, max_seq_length, load_in_4bit, settings, chain)
        for applies, explanation in _CAUSES:
            if applies(failure):
                raise explanation(failure) from error
        raise


def not_cached(path: str, why: str) -> ModelNotCachedError:
    """For a model that is not on this machine; `why` says what keeps the hub away."""
    return ModelNotCachedError(
        f"{path} is not on this machine (not whole, at least), and {why}. Mend that, "
        f"or set MODEL_NAME={TINY_THINKER}, which needs no network."
    )


def _gated(failure: _Failure) -> ModelLoadError:
    has_token = failure.settings.hf_token or os.environ.get("HF_TOKEN")
    return GatedModelError(
        f"{failure.path} is gated: accept its terms on "
        f"https://huggingface.co/{failure.path}"
        + ("." if has_token else " and set HF_TOKEN.")
    )


def _token_refused(failure: _Failure) -> ModelLoadError:
    return GatedModelError(
        "the hub refuses the token (HF_TOKEN, or the one that `hf auth login` stored). "
        "Make a new one on https://huggingface.co/settings/tokens, or take it away: "
        "only gated models need one."
    )


def _no_such_revision(failure: _Failure) -> ModelLoadError:
    return ModelNotFoundError(f"{failure.path} has no such revision on the hub.")


def _no_such_model(failure: _Failure) -> ModelLoadError:
    near = nearest_models(failure.path)
    return ModelNotFoundError(
        f"the hub has no model {failure.path}, or hides it from you (HF_TOKEN)."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
    )


def _proxy_fails(failure: _Failure) -> ModelLoadError:
    detail = failure.chain[-1] if not failure.status else f"answers {failure.status}"
    why = f"the proxy{_proxy()} fails: {detail}. See HTTPS_PROXY and NO_PROXY"
    return not_cached(failure.path, why)


def _hub_refuses(failure: _Failure) -> ModelLoadError:
    why = f"the hub answers {failure.status}"
    if failure.status == 429:
        seconds = failure.response.headers.get("Retry-After")
        wait = f"wait {seconds} seconds" if seconds else "wait some minutes"
        why += f", too many requests: {wait}, or set HF_TOKEN, which raises the limit"
    return not_cached(failure.path, why)


def _no_network(failure: _Failure) -> ModelLoadError:
    if "OfflineModeIsEnabled" in failure.kinds:
        return not_cached(failure.path, "HF_HUB_OFFLINE switches the hub off")
    through = f" through the proxy{_proxy()}" if _proxy() else ""
    why = f"the hub can't be reached{through} ({failure.chain[-1]})"
    return not_cached(failure.path, why)


def _proxy() -> str:
    """The proxy that requests go through, without its password; "" for none."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("http") or proxies.get("all") or ""
    return proxy and " " + re.sub(r"//[^/@]*@", "//", proxy)


def _context_too_long(failure: _Failure) -> ModelLoadError:
    longest = _CONTEXT.search(failure.text)[1]
    return ModelLoadError(
        f"{failure.path} has a context of {int(longest):,} tokens, and max_seq_length "
        f"(MAX_SEQ_LENGTH) is {failure.max_seq_length:,}: lower it to {longest}."
    )


def _bitsandbytes_fails(failure: _Failure) -> ModelLoadError:
    return EngineUnavailableError(
        f"4-bit weights need a working bitsandbytes: {failure.chain[0]}. "
        "`pip install -U bitsandbytes`, or set LOAD_IN_4BIT=false."
    )


def _not_enough_memory(failure: _Failure) -> ModelLoadError:
    free = free_memory_mib()
    message = f"not enough memory to load {failure.path}: {free:,} MiB are free."
    if spec := find_model(failure.path):
        length = min(failure.max_seq_length, spec.context_length)
        estimate = estimate_memory(spec, length, 1, failure.load_in_4bit)
        if not estimate.fits(free):
            message += f" {estimate.advice(free)}"
    # vLLM asks for more where its share is too small for one long sequence.
    verb = "Raise" if "ncreas" in failure.text else "Lower"
    settings = failure.settings
    if current_gpu():
        share = f"GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization})"
    else:
        share = f"{CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB)"
    return NotEnoughMemoryError(
        f"{message} {verb} {share}, or lower MAX_SEQ_LENGTH "
        f"({failure.max_seq_length}). Other kernels that hold memory show up in "
        "JupyterLab's list of running kernels."
    )


_CONTEXT = re.compile(r"derived max_model_len \(\w+=(\d+)")
_PROXY = re.compile(r"proxy URL|Proxy-Authenticat", re.IGNORECASE)
_NO_NETWORK = {
    "ConnectionError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TransportError",  # httpx: no route, no name, no answer in time, bad certificate.
}
# What a load can fail from: how it is known, and what to say. The first that applies.
_CAUSES: tuple[tuple[Callable[[_Failure], Any], Callable[[_Failure], Exception]], ...]
_CAUSES = (
    (lambda failure: is_out_of_memory(failure.chain), _not_enough_memory),
    (lambda failure: "GatedRepoError" in failure.kinds, _gated),
    (lambda failure: "RevisionNotFoundError" in failure.kinds, _no_such_revision),
    (lambda failure: "RepositoryNotFoundError" in failure.kinds, _no_such_model),
    (lambda failure: failure.status == 401, _token_refused),
    (
        lambda failure: (
            failure.status == 407
            or failure.kinds & {"ProxyError", "InvalidURL"}
            or _PROXY.search(failure.text)
        ),
        _proxy_fails,
    ),
    (
        lambda failure: failure.status in (403, 429) or failure.status >= 500,
        _hub_refuses,
    ),
    (lambda failure: failure.kinds & _NO_NETWORK, _no_network),
    (lambda failure: _CONTEXT.search(failure.text), _context_too_long),
    (
        lambda failure: (
            failure.kinds & {"ImportError", "PackageNotFoundError"}
            and "bitsandbytes" in failure.text
        ),
        _bitsandbytes_fails,
    ),
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
