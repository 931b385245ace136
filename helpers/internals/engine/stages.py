"""Say in the cell that runs which stage a long step has reached."""

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FIRST_SECONDS = 2.0  # A shorter step needs no word.


@contextmanager
def announced(what: str) -> Iterator[Callable[[str], None]]:
    """Show in a notebook that `what` goes on, its stage and seconds, while it does.

    It begins to after two seconds, and leaves a line with the time that it took, one in
    a cell however often it goes on there. Gives a function to call with the name of
    each stage. Outside a notebook it is silent.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if not hasattr(shell, "kernel"):
        yield lambda stage: None
        return
    line = _Line(what, shell)
    # In this context, or Jupyter would not know which cell it belongs to.
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(line.keep_writing,), daemon=True)
    thread.start()
    try:
        yield line.name_stage
    finally:
        line.ended.set()
        thread.join()


class _Line:
    """One line of output that is written anew each second."""

    on_page = ""  # The display_id of the last one.

    def __init__(self, what: str, shell: Any) -> None:
        self.what = what
        self.stage = ""
        self.ended = threading.Event()
        self._publisher = shell.display_pub  # As it is now: it may be held back later.
        self._id = f"{shell.kernel.get_parent()['header']['msg_id']} {what}"

    def name_stage(self, stage: str) -> None:
        self.stage = f", {stage}"

    def keep_writing(self) -> None:
        start = time.monotonic()
        pause = FIRST_SECONDS
        while not self.ended.wait(pause):
            seconds = time.monotonic() - start
            self._write(f"{self.what}{self.stage} ... {seconds:.0f} s")
            pause = 1.0
        if pause == 1.0:
            self._write(f"{self.what}: {time.monotonic() - start:.0f} s")

    def _write(self, text: str) -> None:
        self._publisher.publish(
            {"text/plain": text},
            transient={"display_id": self._id},
            update=_Line.on_page == self._id,
        )
        _Line.on_page = self._id
