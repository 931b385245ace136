"""What can go wrong with a model, as errors that say what to do about it."""

import functools
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...models import TINY_THINKER, estimate_memory, find_model, nearest_models
from ..machine.devices import current_gpu, free_memory_mib
from ..machine.settings import AUTO, Settings

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
        text = " ".join(map(str, chain))
        if is_out_of_memory(chain):
            # vLLM suggests to increase its share if not even one sequence fits in it.
            verb = "Raise" if "ncreas" in text else "Lower"
            raise NotEnoughMemoryError(
                _not_enough(path, max_seq_length, load_in_4bit, settings, verb)
            ) from error
        if known := _hub_error(path, chain, text, settings):
            raise known from error
        if longest := _CONTEXT.search(text):
            raise ModelLoadError(
                f"{path} has a context of {int(longest[1]):,} tokens, and "
                f"max_seq_length (MAX_SEQ_LENGTH) is {max_seq_length:,}: lower it to "
                f"{longest[1]}."
            ) from error
        if _has(chain, ImportError) and "bitsandbytes" in text:
            raise EngineUnavailableError(
                f"4-bit weights need a working bitsandbytes: {error}. "
                "`pip install -U bitsandbytes`, or set LOAD_IN_4BIT=false."
            ) from error
        raise


_CONTEXT = re.compile(r"derived max_model_len \(\w+=(\d+)")


def _has(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)


def _not_enough(
    path: str, max_seq_length: int, load_in_4bit: bool, settings: Settings, verb: str
) -> str:
    free, advice = free_memory_mib(), ""
    if spec := find_model(path):
        length = min(max_seq_length, spec.context_length)
        estimate = estimate_memory(spec, length, 1, load_in_4bit)
        if not estimate.fits(free):
            advice = f"{estimate.advice(free)} "
    share = f"{CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB)"
    if current_gpu():
        share = f"GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization or AUTO})"
    return (
        f"not enough memory to load {path}: {free:,} MiB are free. {advice}{verb} "
        f"{share}, or lower MAX_SEQ_LENGTH ({max_seq_length}). Other kernels that hold "
        "memory show up in JupyterLab's list of running kernels."
    )


def not_cached(path: str, why: str) -> ModelNotCachedError:
    """For a model that is not on this machine; `why` says what keeps the hub away."""
    return ModelNotCachedError(
        f"{path} is not on this machine, or not all of it, and {why}. Put that right "
        f"and run this again, or set MODEL_NAME={TINY_THINKER}, which needs no network."
    )


def _hub_error(
    path: str, chain: list[BaseException], text: str, settings: Settings
) -> ModelLoadError | None:
    """What the hub, or a proxy before it, has answered, or why nothing has."""
    from huggingface_hub import errors as hub

    if _has(chain, hub.GatedRepoError):
        has_token = settings.hf_token or os.environ.get("HF_TOKEN")
        return GatedModelError(
            f"{path} is gated: accept its terms on https://huggingface.co/{path}"
            + ("." if has_token else " and set HF_TOKEN.")
        )
    if _has(chain, hub.RevisionNotFoundError):
        return ModelNotFoundError(f"{path} has no such revision on the hub.")
    if _has(chain, hub.RepositoryNotFoundError):
        near = nearest_models(path)
        return ModelNotFoundError(
            f"the hub has no model {path}, or hides it from you (HF_TOKEN)."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    answers = (getattr(one, "response", None) for one in chain)
    response = next((answer for answer in answers if answer is not None), None)
    if response is not None and response.status_code == 401:
        return GatedModelError(
            "the hub refuses the token (HF_TOKEN, or the one that `hf auth login` "
            "stored). Make a new one on https://huggingface.co/settings/tokens, or "
            "take it away: only gated models need one."
        )
    if why := _no_way_to_the_hub(chain, text, response):
        return not_cached(path, why)
    return None


def _no_way_to_the_hub(chain: list[BaseException], text: str, response: Any) -> str:
    """Why the hub can't be asked; empty where that is not what failed."""
    import httpx
    from huggingface_hub import errors as hub

    first, status = chain[-1], getattr(response, "status_code", 0)
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("http") or proxies.get("all") or ""
    proxy = proxy and " " + re.sub(r"//[^/@]*@", "//", proxy)  # without its password
    by_proxy = status == 407 or _has(chain, httpx.ProxyError, httpx.InvalidURL)
    if by_proxy or re.search("proxy URL|Proxy-Authenticat", text, re.IGNORECASE):
        detail = f"answers {status}" if status else first
        return f"the proxy{proxy} fails: {detail}. See HTTPS_PROXY and NO_PROXY"
    if status == 429:
        seconds = response.headers.get("Retry-After")
        wait = f"wait {seconds} seconds" if seconds else "wait some minutes"
        return (
            f"the hub answers 429, too many requests: {wait}, or set HF_TOKEN, which "
            "raises the limit"
        )
    if status == 403 or status >= 500:
        return f"the hub answers {status}"
    if _has(chain, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE switches the hub off"
    # httpx's: no route, no name, no answer in time, a bad certificate.
    if _has(chain, ConnectionError, hub.LocalEntryNotFoundError, httpx.TransportError):
        through = f" through the proxy{proxy}" if proxy else ""
        return f"the hub can't be reached{through} ({first})"
    return ""


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
