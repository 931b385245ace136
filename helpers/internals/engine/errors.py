"""What is loaded, and what can go wrong with it, as errors that say what to do.

In go a plan and what the libraries raise; a known cause comes out as `ModelLoadError`.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ... import models
from ..machine.devices import current_gpu, free_memory_mib
from ..machine.settings import AUTO, Settings
from . import exceptions

CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_OUT_OF_MEMORY = re.compile(
    r"(?i)MemoryError|out of memory|can't allocate memory|less than desired CPU memory"
    r"|No available memory for the cache|Free memory on device|KV cache is needed"
    r"|less than requested memory for kv"
)
_Errors = list[BaseException]


@dataclass(frozen=True)
class LoadPlan:
    """A model that is to be loaded, made once from a name and the settings."""

    name: str
    path: str  # A folder or hub path.
    spec: models.ModelSpec | None  # None for a model that is not in `MODELS`.
    device: str
    in_4bit: bool
    max_seq_length: int | None  # None for the model's own context.

    def estimate(self) -> models.MemoryEstimate | None:
        """Estimate the memory of the load; None for a model that is not known."""
        most = self.spec.context_length if self.spec else 0
        length = min(self.max_seq_length or most, most)
        return self.spec and models.estimate_memory(self.spec, length, 1, self.in_4bit)


def causes(error: BaseException | None, handled: BaseException | None) -> _Errors:
    """List an error and all that it came from, without what the caller was handling."""
    found: _Errors = []
    while error is not None and error not in (handled, *found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def is_out_of_memory(errors: _Errors) -> bool:
    """Return True if one of these errors says that memory was lacking."""
    return any(_OUT_OF_MEMORY.search(f"{type(one)}: {one}") for one in errors)


def ends_everything(error: Exception) -> bool:
    """Return True if vLLM's engine can't go on after this error, for any prompt."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, ValueError):  # It is about a prompt, whose text it may quote.
        return False
    # After a CUDA error every later call in this process fails as well.
    dead = isinstance(error, EngineDeadError) or "CUDA error" in str(error)
    return dead or is_out_of_memory([error])


@contextmanager
def explained(plan: LoadPlan, settings: Settings) -> Iterator[None]:
    """Raise a `ModelLoadError` that says what to do, where the cause is known."""
    handled = sys.exception()
    try:
        yield
    except exceptions.ModelLoadError:
        raise
    except Exception as error:
        chain = causes(error, handled)
        if is_out_of_memory(chain):
            raise _memory_error(plan, chain, settings) from error
        if known := _hub_error(plan.path, chain):
            raise known from error
        raise


def _memory_error(plan: LoadPlan, chain: _Errors, settings: Settings) -> Exception:
    free, estimate = free_memory_mib(), plan.estimate()
    fits = estimate is None or estimate.fits(free)
    knob = f"{CPU_CACHE} ({settings.vllm_cpu_kvcache_space} GiB)"
    if current_gpu():
        knob = f"GPU_MEMORY_UTILIZATION ({settings.gpu_memory_utilization or AUTO})"
    # vLLM suggests to increase its share if not even one sequence fits in it.
    verb = "Raise" if any("ncreas" in str(one) for one in chain) else "Lower"
    return exceptions.NotEnoughMemoryError(
        f"not enough memory to load {plan.name}: {free:,} MiB are free. {verb} {knob}, "
        f"or lower MAX_SEQ_LENGTH ({plan.max_seq_length}). Other kernels that hold "
        "memory show up in JupyterLab's list of running kernels."
        f"{'' if fits else ' ' + estimate.advice(free)}"
    )


def _hub_error(path: str, chain: _Errors) -> exceptions.ModelLoadError | None:
    """Return what the Hub, or the way to it, has to say; None if that is no cause."""
    import httpx
    from huggingface_hub import errors as hub

    kinds = (httpx.HTTPError, hub.LocalEntryNotFoundError, ConnectionError)
    found = next((one for one in chain if isinstance(one, kinds)), None)
    if isinstance(found, hub.GatedRepoError):
        text = f"{path} is gated: accept its terms on https://huggingface.co/{path}"
        return exceptions.GatedModelError(f"{text}, and set HF_TOKEN to your token.")
    if isinstance(found, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        text = f"{path} can't be loaded: {found}{models.did_you_mean(path)}"
        return exceptions.ModelNotFoundError(text)
    return not_cached(path, found) if found else None


def not_cached(path: str, why: object) -> exceptions.ModelNotCachedError:
    """Return the error for a model that is not here; `why` keeps the Hub away."""
    return exceptions.ModelNotCachedError(
        f"{path} is not on this machine, or not all of it, and the Hub gives nothing: "
        f"{' '.join(str(why).split())}. TROUBLESHOOTING.md has what to do; "
        f"MODEL_NAME={models.TINY_THINKER} needs no network."
    )
