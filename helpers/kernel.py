"""End the kernel and all that it started: the last cell of every notebook.

The Jupyter server that owns a kernel has to end it: a kernel that exits by itself looks
like a crash, and is started again (jupyter_client issue 237). A kernel that waits for
its reader keeps a file in Jupyter's runtime folder. It ends when another notebook,
whose load needs the memory, removes that file.
"""

import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from jupyter_core.paths import jupyter_runtime_dir

from .internals.machine.devices import free_memory_mib

REPLY_SECONDS = 1.0  # for the cell's reply to reach whoever runs the notebook
REQUEST_SECONDS = 3.0  # for one answer of a Jupyter server on this machine
CHILD_SECONDS = 5.0  # for child processes to end, before they are forced
EXIT_SECONDS = 3.0  # for an orderly exit, before it is forced
IDLE_SECONDS = 600.0  # that a kernel stays for its reader after the last cell
LEAVE_SECONDS = 20.0  # for a waiting kernel to end once its file is gone
ALONE_SECONDS = 1.0  # of rest before a cell that is not part of Run All
_NOTE = "waits-in-last-cell-"  # begins the name of a waiting kernel's file
_last_actions: list[Callable[[], None]] = []


def at_shutdown(action: Callable[[], None]) -> None:
    """Have `action` called before the kernel ends; its errors are ignored."""
    _last_actions.append(action)


def shutdown_kernel() -> None:
    """End this kernel, its child processes and the memory that they hold.

    Where nobody can answer (nbmake, nbconvert, papermill) the kernel ends at once. For
    a reader it stays for the exercises. It ends ten minutes after the last cell, at
    once when this cell is run again by itself, or when a load in another notebook needs
    the memory.

    A Jupyter server that only a password opens, or that listens on a Unix socket, can't
    be asked to end the kernel: it starts an empty one again.
    """
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if not (kernelapp and kernelapp.IPKernelApp.initialized()):
        print("Not in a Jupyter kernel: nothing to shut down.")
        return
    app = kernelapp.IPKernelApp.instance()
    # Runners say with each cell that nobody would answer a question, front ends don't.
    if app.kernel.get_parent()["content"].get("allow_stdin"):
        _Waiting.current = _Waiting.current or _Waiting(app)
        if not _Waiting.current.is_run_again():
            _Waiting.current.announce()
            return
    print(_free_memory())

    def end_after_reply() -> None:
        app.shell.events.unregister("post_execute", end_after_reply)
        threading.Thread(target=_end_kernel, args=[app], daemon=True).start()

    # post_execute and not post_run_cell, which silent cells and widgets' callbacks lack
    app.shell.events.register("post_execute", end_after_reply)


def make_room(needed_mib: float) -> None:
    """End the kernels that wait in their last cell if less memory than that is free.

    The memory is that of models: the GPU's, or main memory, in MiB.
    """
    if free_memory_mib() >= needed_mib:
        return
    waiting = {}
    for note in Path(jupyter_runtime_dir()).glob(f"{_NOTE}*"):
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(note.name.removeprefix(_NOTE)))
            if process.create_time() <= note.stat().st_mtime:  # Else a later process.
                waiting[process] = note.read_text(encoding="utf-8")
        note.unlink(missing_ok=True)  # This asks the kernel to end.
    for process in psutil.wait_procs(waiting, LEAVE_SECONDS)[0]:
        print(f"Ended the kernel of {waiting[process]}: its memory is needed here.")


class _Waiting:
    """A kernel that stays for its reader: its clock, its file, its text on the page."""

    current: "_Waiting | None" = None

    def __init__(self, app: Any) -> None:
        from tornado.ioloop import PeriodicCallback

        self._app = app
        self._note = Path(jupyter_runtime_dir(), f"{_NOTE}{os.getpid()}")
        self._cells, self._rest, self._since = 0, 0.0, float("inf")
        app.shell.events.register("pre_execute", self._begin_cell)
        app.shell.events.register("post_execute", self._end_cell)
        self._clock = PeriodicCallback(self._end_in_time, callback_time=500)  # ms
        self._clock.start()
        at_shutdown(self._leave)

    def is_run_again(self) -> bool:
        """Tell whether this cell was run a second time, and not as part of Run All."""
        return self._cells == 1 or self._rest > ALONE_SECONDS

    def announce(self) -> None:
        """Say on the page what ends the kernel."""
        from IPython.display import display

        self._cells = 0
        text = (
            f"The kernel stays for the exercises. It ends "
            f"{IDLE_SECONDS / 60:g} minutes after the last cell that you run, or when "
            "another notebook needs the memory. This cell, run again, ends it at once."
        )
        self._output = display({"text/plain": text}, raw=True, display_id=True)

    def _begin_cell(self) -> None:
        self._cells += 1
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
            text = "Another notebook needs the memory.\n" * asked + _free_memory()
            self._output.update({"text/plain": text}, raw=True)
            threading.Thread(target=_end_kernel, args=[self._app], daemon=True).start()

    def _leave(self) -> None:
        self._clock.stop()
        self._app.shell.events.unregister("post_execute", self._end_cell)
        self._note.unlink(missing_ok=True)


def _free_memory() -> str:
    """End all that this kernel started; return the text for the reader."""
    for action in _last_actions:
        with suppress(Exception):
            action()
    logging.disable(logging.CRITICAL)  # or vLLM reports the death of its engine
    ended = _end_children(CHILD_SECONDS)
    return (
        f"Ended {ended} child process{'' if ended == 1 else 'es'}. The kernel ends "
        "now; its memory is free again.\n"
        "JupyterLab and Notebook 7 show No Kernel within ten seconds.\n"
        "Wait for that before you run a cell: it starts a fresh kernel."
    )


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
    time.sleep(REPLY_SECONDS)
    if not _shut_down_by_server(Path(app.abs_connection_file)):
        app.kernel.io_loop.add_callback(app.kernel.do_shutdown, False)
    time.sleep(EXIT_SECONDS)
    _end_children(wait=0.0)  # A cell that was queued behind may have started some.
    os._exit(0)


def _shut_down_by_server(connection_file: Path) -> bool:
    """Ask the Jupyter servers of this folder to end the kernel; False if none does.

    A server that does not own the kernel answers 404 (REST API, api/kernels).
    """
    import httpx

    kernel_id = connection_file.stem.removeprefix("kernel-")
    xsrf = secrets.token_hex(16)  # What a page sends, for a server without a token.
    for path in connection_file.parent.glob("jpserver-*.json"):
        try:
            server = json.loads(path.read_text(encoding="utf-8"))
            headers = {"Authorization": f"token {server['token'] or 'none'}"}
            headers |= {"Cookie": f"_xsrf={xsrf}", "X-XSRFToken": xsrf}
            url = f"{server['url']}api/kernels/{kernel_id}"
            # Past any proxy; a certificate is made for a name, not an address.
            with httpx.Client(trust_env=False, verify=False) as client:
                answer = client.delete(url, headers=headers, timeout=REQUEST_SECONDS)
        except httpx.ReadTimeout:
            return True  # It may be waiting for this very process to end.
        except Exception:
            continue  # A server that is gone, or a file that is none of a server.
        if answer.is_success:
            return True
    return False
