"""What is loaded, and what can go wrong with it, as errors that say what to do.

In go a plan and what the libraries raise; out comes a `ModelLoadError` where the cause
is known. It knows nothing of how a load is done.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...models import (
    TINY_THINKER,
    MemoryEstimate,
    ModelSpec,
    estimate_memory,
    nearest_models,
)
from ..machine.devices import current_gpu, free_memory_mib
from ..machine.settings import AUTO, Settings
from .exceptions import (
    EngineUnavailableError,
    GatedModelError,
    ModelLoadError,
    ModelNotCachedError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)

CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|No available memory for the cache"
    r"|Free memory on device|KV cache is needed|less than requested memory for kv"
    r"|less than desired CPU memory",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LoadPlan:
    """A model that is to be loaded, made once from a name and the settings.

    `name` is the one that was asked for, `path` a folder or hub path, `spec` None for a
    model that is not in `MODELS`. `max_seq_length` is None for the model's own context.
    """

    name: str
    path: str
    spec: ModelSpec | None
    device: str
    in_4bit: bool
    max_seq_length: int | None

    def estimate(self) -> MemoryEstimate | None:
        """Estimate the memory of the load; None for a model that is not known."""
        if self.spec is None:
            return None
        most = self.spec.context_length
        length = min(self.max_seq_length or most, most)
        return estimate_memory(self.spec, length, 1, self.in_4bit)


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


def ends_everything(error: Exception) -> bool:
    """Tell whether vLLM's engine can't go on after this error, for any prompt."""
    from vllm.v1.engine.exceptions import EngineDeadError

    # After a CUDA error every later call in this process fails as well.
    dead = isinstance(error, EngineDeadError) or "CUDA error" in str(error)
    return dead or is_out_of_memory([error])


@contextmanager
def explained(plan: LoadPlan, settings: Settings) -> Iterator[None]:
    """Raise a `ModelLoadError` that says what to do, where the cause is known."""
    handled = sys.exception()
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        chain = causes(error, handled)
        if known := _known_error(plan, chain, settings):
            raise known from error
        raise


def _known_error(
    plan: LoadPlan, chain: list[BaseException], settings: Settings
) -> ModelLoadError | None:
    text = " ".join(map(str, chain))
    if is_out_of_memory(chain):
        # vLLM suggests to increase its share if not even one sequence fits in it.
        verb = "Raise" if "ncreas" in text else "Lower"
        return NotEnoughMemoryError(_not_enough(plan, settings, verb))
    if known := _hub_error(plan.path, chain):
        return known
    if longest := _CONTEXT.search(text):
        return ModelLoadError(
            f"{plan.name} has a context of {int(longest[1]):,} tokens, and "
            f"max_seq_length (MAX_SEQ_LENGTH) is {plan.max_seq_length:,}: lower it to "
            f"{longest[1]}."
        )
    if missing := find_error(chain, ImportError):
        advice = "Install what it names"
        if "bitsandbytes" in text:
            advice = "`pip install -U bitsandbytes`, or set LOAD_IN_4BIT=false"
        return EngineUnavailableError(f"{plan.name} needs more: {missing}. {advice}.")
    return None


_CONTEXT = re.compile(r"derived max_model_len \(\w+=(\d+)")


def find_error(
    chain: list[BaseException], *kinds: type[BaseException]
) -> BaseException | None:
    """Return the first error of one of these kinds, or None."""
    return next((one for one in chain if isinstance(one, kinds)), None)


def _not_enough(plan: LoadPlan, settings: Settings, verb: str) -> str:
    free, estimate, advice = free_memory_mib(), plan.estimate(), ""
    if estimate and not estimate.fits(free):
        advice = f"{estimate.advice(free)} "
    share = f"{CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB)"
    if current_gpu():
        share = f"GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization or AUTO})"
    return (
        f"not enough memory to load {plan.name}: {free:,} MiB are free. {advice}"
        f"{verb} {share}, or lower MAX_SEQ_LENGTH "
        f"({plan.max_seq_length}). Other kernels that hold memory show up in "
        "JupyterLab's list of running kernels."
    )


def not_cached(path: str, why: object) -> ModelNotCachedError:
    """Return the error for a model that is not here; `why` keeps the Hub away."""
    return ModelNotCachedError(
        f"{path} is not on this machine, or not all of it, and the Hub gives nothing: "
        f"{why}. TROUBLESHOOTING.md has what to do; "
        f"MODEL_NAME={TINY_THINKER} needs no network."
    )


def _hub_error(path: str, chain: list[BaseException]) -> ModelLoadError | None:
    """Return what the Hub, or the way to it, has to say; None if that is no cause."""
    import httpx
    from huggingface_hub import errors as hub

    if find_error(chain, hub.GatedRepoError):
        return GatedModelError(
            f"{path} is gated: accept its terms on https://huggingface.co/{path}, and "
            "set HF_TOKEN to a token of that account."
        )
    if find_error(chain, hub.RevisionNotFoundError):
        return ModelNotFoundError(f"{path} has no such revision on the hub.")
    refused = find_error(chain, hub.HfHubHTTPError)
    status = getattr(getattr(refused, "response", None), "status_code", 0)
    if status == 401 and not isinstance(refused, hub.RepositoryNotFoundError):
        return GatedModelError(f"the hub refuses the token (HF_TOKEN): {refused}")
    if find_error(chain, hub.RepositoryNotFoundError):
        near = " or ".join(nearest_models(path))
        return ModelNotFoundError(
            f"the hub has no model {path}, or hides it from you (HF_TOKEN)."
            + (f" Did you mean {near}?" if near else "")
        )
    # httpx's: no route, no name, no answer in time, a bad certificate or proxy.
    ways = (httpx.TransportError, httpx.InvalidURL, ConnectionError)
    if refused or find_error(chain, hub.LocalEntryNotFoundError, *ways):
        return not_cached(path, str(refused or chain[-1]).strip().splitlines()[0])
    proxy = find_error(chain, ValueError)
    if proxy and "proxy" in str(proxy).lower():
        return not_cached(path, proxy)
    return None


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
