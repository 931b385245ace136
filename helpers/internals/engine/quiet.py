"""Hold back the engines' own output, and say in its place how far a long step is.

In goes a block of code; out comes one line, or all output if LOG_LEVEL asks for it.
"""

import contextvars
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..machine.settings import Settings

FIRST_SECONDS = 2.0  # A shorter step is not announced.


def is_loud(settings: Settings) -> bool:
    """Return True if the engines' own output is wanted."""
    return settings.log_level in ("debug", "info")


def quieten_packages() -> None:
    """Silence what the imported engines write past `quiet`, or after it."""
    import transformers.utils.logging

    for package in ("bitsandbytes", "torch", "transformers", "unsloth", "vllm"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    logging.getLogger("torch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def _open_missing_streams() -> None:
    """Give a process that was started without stdout or stderr the null device."""
    if None in (sys.stdout, sys.stderr):
        while os.open(os.devnull, os.O_RDWR) < 2:
            pass  # The lowest free one is opened: 0, 1 and 2 exist afterwards.
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  It stays.
        sys.stderr = sys.stderr or sys.stdout


@contextmanager
def quiet(settings: Settings) -> Iterator[None]:
    """Hold back what the block prints, at the level of Python and of the process.

    An error that the block raises gets the last 2,000 characters of it as a note.
    """
    from IPython.utils.capture import capture_output

    _open_missing_streams()
    if is_loud(settings):
        yield
        return
    streams = {sys.stdout, sys.stderr}
    text = {"encoding": "utf-8", "errors": "replace"}
    bars = capture_output(stdout=False, stderr=False)  # They are widgets in a notebook.
    with tempfile.TemporaryFile("w+", **text) as held, warnings.catch_warnings(), bars:
        warnings.simplefilter("ignore")
        copies = {number: os.dup(number) for number in (1, 2)}
        for stream in streams:
            stream.flush()
            # Not another stream: log handlers made meanwhile would keep it.
            stream.write = held.write
        for number in copies:
            os.dup2(held.fileno(), number)
        try:
            yield
        except Exception as error:
            held.seek(0)
            if said := held.read().strip():
                error.add_note(f"Printed before that:\n{said[-2000:]}")
            raise
        finally:
            for number, copy in copies.items():
                os.dup2(copy, number)
                os.close(copy)
            for stream in streams:
                del stream.write


_line_on_page = ""  # The display_id of the last line.


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Show in a notebook's cell that `what` goes on, and at last its seconds."""
    ended, start = threading.Event(), time.monotonic()
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    parent = shell.kernel.get_parent() if hasattr(shell, "kernel") else {}
    if "header" not in parent:  # No notebook, or the start-up code of one.
        yield
        return
    publisher = shell.display_pub  # `quiet` replaces it later.
    line = f"{parent['header']['msg_id']} {what}"

    def write(text: str) -> None:
        global _line_on_page
        data = {"text/plain": f"{what}{text} {time.monotonic() - start:.0f} s"}
        is_there, _line_on_page = line == _line_on_page, line
        publisher.publish(data, transient={"display_id": line}, update=is_there)

    def keep_writing() -> None:
        if not ended.wait(FIRST_SECONDS):
            write(" ...")
            while not ended.wait(1.0):
                write(" ...")
            write(":")

    # Jupyter finds the cell of an output by the context.
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(keep_writing,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
