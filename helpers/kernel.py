"""End the kernel and all that it started: the last cell of every notebook.

The Jupyter server that owns a kernel has to end it: it takes an exit for a crash, and
starts another one (jupyter_client issue 237). A kernel that waits for its reader keeps
a file in Jupyter's runtime folder, and ends when a load elsewhere removes it.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
from jupyter_core.paths import jupyter_runtime_dir

from .internals.machine.devices import free_memory_mib

CHILD_SECONDS = 5.0  # for child processes to end, before they are forced
IDLE_SECONDS = 600.0  # that a kernel stays for its reader after the last cell
_NOTE = "waits-in-last-cell-"  # begins the name of a waiting kernel's file
# What is called before the kernel ends; errors are ignored.
at_shutdown: list[Callable[[], object]] = []


def shutdown_kernel() -> None:
    """End this kernel, its child processes and the memory that they hold.

    Where nobody can answer (nbmake, nbconvert, papermill) the kernel ends at once. For
    a reader it ends ten minutes after the last cell, when this cell is run again by
    itself, or when a load in another notebook needs the memory. A Jupyter server that
    only a password or a Unix socket opens can't be asked: it starts an empty one again.
    """
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if not (kernelapp and kernelapp.IPKernelApp.initialized()):
        print("Not in a Jupyter kernel: nothing to shut down.")
        return
    app = kernelapp.IPKernelApp.instance()
    # Runners say with each cell that nobody would answer a question, front ends don't.
    answers = app.kernel.get_parent()["content"].get("allow_stdin")
    if not (answers and _Waiting(app).goes_on()):
        print(_end_all(app, partial(app.shell.events.register, "post_execute")))


def make_room(needed_mib: float) -> None:
    """End the kernels that wait in their last cell if fewer MiB for models are free."""
    if free_memory_mib() >= needed_mib:
        return
    waiting = {}
    for note in Path(jupyter_runtime_dir()).glob(f"{_NOTE}*"):
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(note.name.removeprefix(_NOTE)))
            if process.create_time() <= note.stat().st_mtime:  # Else a later process.
                waiting[process] = note.read_text(encoding="utf-8")
        note.unlink(missing_ok=True)  # This asks the kernel to end.
    for process in psutil.wait_procs(waiting, timeout=20)[0]:
        print(f"Ended the kernel of {waiting[process]}: its memory is needed here.")


@cache  # A kernel has one.
class _Waiting:
    """A kernel that stays for its reader: its clock, its file, its text on the page."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._note = Path(jupyter_runtime_dir(), f"{_NOTE}{os.getpid()}")
        self._announced, self._rest, self._since = -1, 0.0, float("inf")
        app.shell.events.register("pre_execute", self._begin_cell)
        app.shell.events.register("post_execute", self._end_cell)
        at_shutdown.append(self._stop_waiting)
        self._end_in_time()

    def goes_on(self) -> bool:
        """Say on the page what ends the kernel; return False if this cell does now."""
        from IPython.display import display

        this_cell = self._app.shell.execution_count
        # After a second of rest it is not part of Run All.
        if this_cell == self._announced + 1 or self._rest > 1.0:
            return False
        self._announced = this_cell
        text = f"The kernel stays for the exercises. It ends {IDLE_SECONDS / 60:g} "
        text += "minutes after the last cell that you run, or when another notebook "
        text += "needs the memory. This cell, run again, ends it at once."
        self._output = display({"text/plain": text}, raw=True, display_id=True)
        return True

    def _begin_cell(self) -> None:
        self._rest, self._since = time.monotonic() - self._since, float("inf")
        self._note.unlink(missing_ok=True)

    def _end_cell(self) -> None:
        path = os.environ.get("JPY_SESSION_NAME", f"process {os.getpid()}")
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(Path(path).name, encoding="utf-8")
        self._since = time.monotonic()

    def _end_in_time(self) -> None:
        rest = time.monotonic() - self._since  # Negative while a cell runs.
        asked = rest >= 0 and not self._note.exists()
        if asked or rest > IDLE_SECONDS:
            text = "Another notebook needs the memory.\n" * asked
            text += _end_all(self._app, self._app.kernel.io_loop.add_callback)
            self._output.update({"text/plain": text}, raw=True)
        else:
            self._app.kernel.io_loop.call_later(0.5, self._end_in_time)

    def _stop_waiting(self) -> None:
        self._app.shell.events.unregister("post_execute", self._end_cell)
        self._note.unlink(missing_ok=True)


def _end_all(app: Any, call_later: Callable) -> str:
    """End all that this kernel started, and later it; return a text for the reader."""
    for action in at_shutdown:
        with suppress(Exception):
            action()
    logging.disable(logging.CRITICAL)  # or vLLM reports the death of its engine
    ended = _end_children(CHILD_SECONDS)
    thread = threading.Thread(target=_end_kernel, args=[app], daemon=True)
    call_later(lambda: thread.is_alive() or thread.start())
    text = f"Ended {ended} child process{'es' * (ended != 1)}. The kernel ends now; "
    text += "its memory is free again.\nJupyterLab and Notebook 7 show No Kernel "
    text += "within ten seconds.\nWait for that before you run a cell: "
    return f"{text}it starts a fresh kernel."


def _end_children(wait: float) -> int:
    """Terminate the descendants, kill those left after `wait`; return their number."""
    family = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # A zombie has no command line.
            # The tracker ends with the kernel, and removes shared memory left behind.
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                process.terminate()
                family.append(process)
    for process in psutil.wait_procs(family, wait)[1]:
        with suppress(psutil.Error):
            process.kill()
            process.wait(1.0)
    return len(family)


def _end_kernel(app: Any) -> None:
    """End the kernel: by its server, else by itself, else by force."""
    time.sleep(1.0)  # The cell's reply reaches whoever runs the notebook.
    if not _shut_down_by_server(Path(app.abs_connection_file)):
        app.kernel.io_loop.add_callback(app.kernel.do_shutdown, False)
    time.sleep(3.0)  # An exit in order has ended the process by then.
    _end_children(wait=0.0)  # A cell that was queued behind may have started some.
    os._exit(0)


def _shut_down_by_server(connection_file: Path) -> bool:
    """Ask the Jupyter servers of this folder to end the kernel; False if none does."""
    import httpx

    kernel_id = connection_file.stem.removeprefix("kernel-")
    headers = {"Cookie": "_xsrf=00", "X-XSRFToken": "00"}  # Any two that agree.
    # Past any proxy; a certificate is made for a name, not an address.
    options = {"trust_env": False, "verify": False, "timeout": 3.0}
    for path in connection_file.parent.glob("jpserver-*.json"):
        try:
            server = json.loads(path.read_text(encoding="utf-8"))
            headers["Authorization"] = f"token {server['token'] or 'none'}"
            url = f"{server['url']}api/kernels/{kernel_id}"
            if httpx.delete(url, headers=headers, **options).is_success:
                return True
        except httpx.ReadTimeout:
            return True  # It may be waiting for this very process to end.
        except Exception:
            continue  # A server that is gone, or a file that is none of a server.
    return False
