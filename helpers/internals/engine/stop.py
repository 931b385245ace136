"""Stop a generation with Ctrl-C or the stop button, and go on using the engine.

In goes a `vllm.LLM`; out come calls that end between two steps and leave the engine
empty. A load or an import that is stopped can't be repaired: the next one says so.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

from ..machine.devices import current_gpu, free_memory_mib
from .errors import CPU_CACHE, causes, is_out_of_memory
from .exceptions import ModelLoadError, NotEnoughMemoryError

_USE = "_used_by"  # The engine's attribute that holds the thread that generates.


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

    A Ctrl-C in `generate`, `chat` or a loop of `llm_engine.step()` ends it between two
    steps: the next call works and returns its own outputs.
    """
    core, step = engine.llm_engine, engine.llm_engine.step

    def made_stoppable(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def stoppable_call(*args: Any, **kwargs: Any) -> Any:
            # The call around a step of this thread handles interrupts.
            inner = call is step and vars(core).get(_USE) == [threading.get_ident()]
            with nullcontext() if inner else stoppable(core):
                return call(*args, **kwargs)

        return stoppable_call

    core.step = made_stoppable(step)
    engine.generate = made_stoppable(engine.generate)
    engine.chat = made_stoppable(engine.chat)
    return wraps(engine.generate)(partial(engine.generate, use_tqdm=show_progress))


@contextmanager
def stoppable(core: Any) -> Iterator[None]:
    """Let a Ctrl-C end this block between two steps of `core`, an `llm_engine`.

    A second Ctrl-C does not wait for the step. If the block ends early, for any reason,
    its requests are aborted. Raises `RuntimeError` if the engine is in such a block
    already, and `NotEnoughMemoryError` if the generation runs out of memory.
    """
    use, step, handled = [threading.get_ident()], core.step, sys.exception()
    if vars(core).setdefault(_USE, use) is not use:
        why = "in another thread or loop: wait for its end, or load a second model."
        raise RuntimeError(f"this engine is generating already, {why}")

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupt_next_step(*_: object) -> None:
        core.step = raise_interrupt
        signal.signal(signal.SIGINT, raise_interrupt)

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
            why = f"out of memory while generating: {free_memory_mib():,} MiB are free."
            way = f"Load with a lower {knob}, or end what else takes this memory."
            raise NotEnoughMemoryError(f"{why} {way}") from error
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
    ignores = not callable(signal.getsignal(signal.SIGINT))
    if ignores or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_unfinished: list[str] = []  # The import or load that was interrupted here.


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Raise a Ctrl-C in an import or a load at its end, if a library swallows it.

    The libraries have registered half of `what` then, and a second attempt would fail
    for reasons that nobody understands: it raises `ModelLoadError` instead.
    """
    if _unfinished:
        way = "Restart the kernel, and run the cells from the first one."
        why = f"{_unfinished[0]} did not finish, and can't begin again in this process."
        raise ModelLoadError(f"{why} {way}")

    def note(*_: object) -> None:
        _unfinished.append(what)
        raise KeyboardInterrupt

    try:
        with _handling(note):
            yield
    finally:
        if _unfinished:
            raise KeyboardInterrupt
