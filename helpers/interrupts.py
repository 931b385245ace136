"""Stop a generation with Ctrl-C or the stop button, and go on using the engine."""

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .devices import current_gpu
from .errors import CPU_CACHE, causes, generation_memory_error, is_out_of_memory


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
            if is_out_of_memory(causes(error, handled)):
                count = len(prompts) if isinstance(prompts, list | tuple) else 1
                knob = "GPU_MEMORY_UTILIZATION" if current_gpu() else CPU_CACHE
                raise generation_memory_error(
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
