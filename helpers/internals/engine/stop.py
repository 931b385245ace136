"""Stop a generation with Ctrl-C or the stop button, and go on using the engine.

In goes a `vllm.LLM`; out come calls that end between two steps and leave the engine
empty. A load or an import that is stopped can't be repaired: the next one says so.
"""

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from ..machine.devices import current_gpu, free_memory_mib
from .errors import CPU_CACHE, causes, is_out_of_memory
from .exceptions import ModelLoadError, NotEnoughMemoryError

_USE = "_used_by"  # the engine's attribute that says who generates with it


def engine_of(model: Any) -> Any:
    """Return the `vllm.LLM` behind a model, which may be one itself, or None."""
    if hasattr(model, "llm_engine"):
        return model
    engines = (getattr(part, "vllm_engine", None) for part in parts_of(model))
    return next(filter(None, engines), None)


def parts_of(model: Any) -> list[Any]:
    """Return the model and those it wraps: PEFT and Unsloth wrap one as `.model`."""
    found: list[Any] = []
    while model is not None and model not in found:
        found.append(model)
        model = getattr(model, "model", None)
    return found


def interruptible(engine: Any, show_progress: bool = False) -> Callable[..., list]:
    """Make a `vllm.LLM` safe to interrupt, and return its `fast_generate`.

    A Ctrl-C (Jupyter's stop button) in `generate`, in `chat` or in a loop of
    `llm_engine.step()` takes effect between two steps, and aborts what was running: the
    next call works and returns its own outputs.
    """
    core = engine.llm_engine

    def made_stoppable(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def stoppable_call(*args: Any, **kwargs: Any) -> Any:
            thread = getattr(vars(core).get(_USE), "thread", None)
            if call is step and thread == threading.get_ident():
                return call(*args, **kwargs)  # The call around it handles interrupts.
            with stoppable(core):
                return call(*args, **kwargs)

        return stoppable_call

    step = core.step
    core.step = made_stoppable(step)
    engine.generate = made_stoppable(engine.generate)
    engine.chat = made_stoppable(engine.chat)
    return functools.wraps(engine.generate)(
        functools.partial(engine.generate, use_tqdm=show_progress)
    )


@contextmanager
def stoppable(core: Any) -> Iterator[None]:
    """Let a Ctrl-C end this block between two steps of the engine `core`.

    `core` is the `llm_engine` of a `vllm.LLM`. A second Ctrl-C does not wait for the
    step. If the block ends early, for any reason, its requests are aborted.

    Raises `RuntimeError` if the engine is in such a block already, and
    `NotEnoughMemoryError` if the generation runs out of memory.
    """
    use = SimpleNamespace(thread=threading.get_ident())
    if vars(core).setdefault(_USE, use) is not use:
        raise RuntimeError(
            "this engine is generating already, in another thread or in a loop that "
            "has not ended: wait for that, or load a second model."
        )
    step, handled = core.step, sys.exception()

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupt_next_step(*_: object) -> None:
        if core.step is raise_interrupt:
            raise KeyboardInterrupt
        core.step = raise_interrupt

    try:
        with _handling(interrupt_next_step):
            yield
        if core.step is raise_interrupt:
            raise KeyboardInterrupt
    except BaseException as error:
        # Left alone, the next call hangs, or returns these prompts' outputs.
        abort_all(core)
        if is_out_of_memory(causes(error, handled)):
            knob = "GPU_MEMORY_UTILIZATION" if current_gpu() else CPU_CACHE
            raise NotEnoughMemoryError(
                f"out of memory while generating: {free_memory_mib():,} MiB are free. "
                f"Load with a lower {knob}, or end what else takes this memory."
            ) from error
        raise
    finally:
        core.step = step
        delattr(core, _USE)


def abort_all(core: Any) -> None:
    """Abort every request that the engine `core` has."""
    core.abort_request(list(core.output_processor.request_states), internal=True)


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Give `handler` each SIGINT that Python's own handler would get, if any."""
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(before):  # The process may ignore them.
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_unfinished = ""  # The import or load that was interrupted in this process.


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Note a Ctrl-C in an import or a load: `what` can't be begun again afterwards.

    The libraries have registered half of it, and a second attempt would fail for
    reasons that nobody understands: it raises `ModelLoadError` instead. An interrupt
    that a library swallows is raised at the end.
    """
    global _unfinished
    if _unfinished:
        raise ModelLoadError(
            f"{_unfinished} did not finish, and can't be begun again in the same "
            "process. Restart the kernel, and run the cells from the first one."
        )

    def note(*_: object) -> None:
        global _unfinished
        _unfinished = what
        raise KeyboardInterrupt

    try:
        with _handling(note):
            yield
    finally:
        if _unfinished:
            raise KeyboardInterrupt
