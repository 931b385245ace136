"""Hold back the engines' own output, and say in its place how far a long step is.

In go a block of code and the log level; out comes one line in the notebook, or all
that the engines print if LOG_LEVEL asks for it. It knows nothing of engines.
"""

import contextvars
import io
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..machine.settings import Settings

FIRST_SECONDS = 2.0  # A shorter step is not announced.


def is_loud(settings: Settings) -> bool:
    """Return whether the engines' own output is wanted."""
    return settings.log_level in ("debug", "info")


def quieten_packages() -> None:
    """Silence what the imported engines write past `quiet`, or after it."""
    import transformers.utils.logging

    for package in ("bitsandbytes", "torch", "transformers", "unsloth", "vllm"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    logging.getLogger("torch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


class _Mutable:
    """A stand-in for stdout or stderr that holds text back while `held` is a buffer.

    Log handlers made meanwhile keep it, so it must pass text on afterwards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.held: io.StringIO | None = io.StringIO()

    def write(self, text: str) -> int:
        return (self._stream if self.held is None else self.held).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _running_shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython and ipython.get_ipython()


def _no_displays() -> AbstractContextManager:
    """Hold back progress bars, which are widgets in a notebook."""
    if _running_shell() is None:
        return nullcontext()
    from IPython.utils.capture import capture_output

    return capture_output(stdout=False, stderr=False, display=True)


def _open_missing_streams() -> None:
    """Give a process that was started without stdout or stderr the null device."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # The lowest free one is opened: 0, 1 and 2 exist afterwards.
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  It stays.


@contextmanager
def quiet(settings: Settings) -> Iterator[None]:
    """Hold back what the block prints, at the level of Python and of the process.

    If the block raises, the last 2,000 characters that were held back are added to the
    error as a note.
    """
    _open_missing_streams()
    if is_loud(settings):
        yield
        return
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(), _no_displays():
        warnings.simplefilter("ignore")
        saved = os.dup(1), os.dup(2)
        sys.stdout, sys.stderr = mutables = tuple(map(_Mutable, streams))
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception as error:
            file.seek(0)
            texts = [file.read().decode(errors="replace")]
            texts += [mutable.held.getvalue() for mutable in mutables]
            if held := "".join(texts).strip():
                error.add_note(f"Printed before that:\n{held[-2000:]}")
            raise
        finally:
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
            for mutable in mutables:
                mutable.held = None
            sys.stdout, sys.stderr = streams


@contextmanager
def announced(what: str) -> Iterator[Callable[[str], None]]:
    """Show in a notebook's cell that `what` goes on, with its stage and seconds.

    Yields a function that takes the name of each stage. The line appears after two
    seconds and ends as the time that the block took. Outside a cell nothing is shown.
    """
    shell = _running_shell()
    parent = shell.kernel.get_parent() if hasattr(shell, "kernel") else {}
    if "header" not in parent:  # No notebook, or the start-up code of one.
        yield lambda stage: None
        return
    line = _Line(what, shell, parent["header"]["msg_id"])
    # Jupyter finds the cell of an output by the context.
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(line.keep_writing,), daemon=True)
    thread.start()
    try:
        yield line.name_stage
    finally:
        line.ended.set()
        thread.join()


class _Line:
    """One line of output that is rewritten each second."""

    on_page = ""  # The display_id of the last one.

    def __init__(self, what: str, shell: Any, cell: str) -> None:
        self.what, self.stage = what, ""
        self.ended = threading.Event()
        self._publisher = shell.display_pub  # `_no_displays` replaces it later.
        self._id = f"{cell} {what}"

    def name_stage(self, stage: str) -> None:
        self.stage = f", {stage}"

    def keep_writing(self) -> None:
        start, pause = time.monotonic(), FIRST_SECONDS
        while not self.ended.wait(pause):
            seconds, pause = time.monotonic() - start, 1.0
            self._write(f"{self.what}{self.stage} ... {seconds:.0f} s")
        if pause == 1.0:
            self._write(f"{self.what}: {time.monotonic() - start:.0f} s")

    def _write(self, text: str) -> None:
        self._publisher.publish(
            {"text/plain": text},
            transient={"display_id": self._id},
            update=_Line.on_page == self._id,
        )
        _Line.on_page = self._id
