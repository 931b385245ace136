"""What is loaded, and what can go wrong with it, as errors that say what to do.

In go a plan and what the libraries raise; out comes a `ModelLoadError` where the cause
is known. It knows nothing of how a load is done.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...models import (
    TINY_THINKER,
    MemoryEstimate,
    ModelSpec,
    did_you_mean,
    estimate_memory,
)
from ..machine.devices import current_gpu, free_memory_mib
from ..machine.settings import AUTO, Settings
from .exceptions import (
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

    `path` is a folder or hub path, `spec` None for a model that is not in `MODELS`,
    `max_seq_length` None for the model's own context.
    """

    name: str
    path: str
    spec: ModelSpec | None
    device: str
    in_4bit: bool
    max_seq_length: int | None

    def estimate(self) -> MemoryEstimate | None:
        """Estimate the memory of the load; None for a model that is not known."""
        most = self.spec.context_length if self.spec else 0
        length = min(self.max_seq_length or most, most)
        return self.spec and estimate_memory(self.spec, length, 1, self.in_4bit)


def causes(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """List an error and all that it came from, without what the caller was handling."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current not in (None, handled, *found):
            found.append(current)
            todo += [current.__context__, current.__cause__]
    return found


def is_out_of_memory(chain: list[BaseException]) -> bool:
    """Return True if one of these errors says that memory was lacking."""
    texts = [str(one) for one in chain if not isinstance(one, MemoryError)]
    return len(texts) < len(chain) or any(map(_OUT_OF_MEMORY.search, texts))


def ends_everything(error: Exception) -> bool:
    """Return True if vLLM's engine can't go on after this error, for any prompt."""
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
        if is_out_of_memory(chain):
            raise _memory_error(plan, chain, settings) from error
        if known := _hub_error(plan.path, chain):
            raise known from error
        raise


def _memory_error(
    plan: LoadPlan, chain: list[BaseException], settings: Settings
) -> NotEnoughMemoryError:
    free, estimate, advice = free_memory_mib(), plan.estimate(), ""
    if estimate and not estimate.fits(free):
        advice = f"{estimate.advice(free)} "
    knob = f"{CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB)"
    if current_gpu():
        knob = f"GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization or AUTO})"
    # vLLM suggests to increase its share if not even one sequence fits in it.
    verb = "Raise" if any("ncreas" in str(one) for one in chain) else "Lower"
    return NotEnoughMemoryError(
        f"not enough memory to load {plan.name}: {free:,} MiB are free. {advice}{verb} "
        f"{knob}, or lower MAX_SEQ_LENGTH ({plan.max_seq_length}). Other kernels that "
        "hold memory show up in JupyterLab's list of running kernels."
    )


def _hub_error(path: str, chain: list[BaseException]) -> ModelLoadError | None:
    """Return what the Hub, or the way to it, has to say; None if that is no cause."""
    import httpx
    from huggingface_hub import errors as hub

    # httpx's: no route, no name, no answer in time, a bad certificate or proxy.
    ways = (httpx.TransportError, httpx.InvalidURL, ConnectionError)
    kinds = (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, *ways)
    found = next((one for one in chain if isinstance(one, kinds)), None)
    if isinstance(found, hub.GatedRepoError):
        return GatedModelError(
            f"{path} is gated: accept its terms on https://huggingface.co/{path}, and "
            "set HF_TOKEN to a token of that account."
        )
    if isinstance(found, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        hint = did_you_mean(path)
        return ModelNotFoundError(f"{path} can't be loaded: {found}{hint}")
    return not_cached(path, found) if found else None


def not_cached(path: str, why: object) -> ModelNotCachedError:
    """Return the error for a model that is not here; `why` keeps the Hub away."""
    return ModelNotCachedError(
        f"{path} is not on this machine, or not all of it, and the Hub gives nothing: "
        f"{' '.join(str(why).split())}. TROUBLESHOOTING.md has what to do; "
        f"MODEL_NAME={TINY_THINKER} needs no network."
    )
