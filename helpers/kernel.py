"""End the kernel and all that it started: the last cell of every notebook.

The Jupyter server that owns a kernel has to end it: one that ends by itself looks like
a crash, and is started again (jupyter_client issue 237). 06 tells the whole story.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

REPLY_SECONDS = 1.0  # for the cell's reply to reach whoever runs the notebook
REQUEST_SECONDS = 3.0  # for one answer of a Jupyter server on this machine
EXIT_SECONDS = 3.0  # for an orderly exit, before it is forced
ALONE_SECONDS = 1.0  # after the cell before, as when this one is run by itself
_last_actions: list[Callable[[], None]] = []


def at_shutdown(action: Callable[[], None]) -> None:
    """Have `shutdown_kernel` call this first, while the page can still be written to.

    What it raises is ignored.
    """
    _last_actions.append(action)


def shutdown_kernel(wait: float = 5.0, idle: float = 600.0) -> None:
    """End this kernel, its child processes and the memory that they hold.

    Where nobody can answer (nbmake, nbconvert, papermill) that is done at once. A
    reader at the screen, who may just have pressed Run All, is asked first, by two
    buttons below the cell: the kernel stays for the exercises, and ends by itself
    `idle` seconds after the last cell or control. Run again, by itself, this ends it.

    Child processes (vLLM's engine core and workers) have `wait` seconds to end by
    themselves. The kernel follows about a second after the cell, ended by its Jupyter
    server, or by itself where it has none (VS Code, nbmake); an exit that hangs is
    forced. Outside a kernel this only says so.

    A server that only a password opens, or that listens on a Unix socket, can't be
    asked: the memory is given back, but the server starts an empty kernel again.
    """
    app = _kernel_app()
    if app is None:
        print("Not in a Jupyter kernel: nothing to shut down.")
        return
    # Runners say with each cell that nobody would answer a question, front ends don't.
    if app.kernel.get_parent()["content"].get("allow_stdin"):
        last = _Question.last
        if last is None or time.monotonic() - last.since < ALONE_SECONDS:  # Run All
            _Question(app, wait, idle)
            return
    print(_free_memory(wait))

    def end_after_reply() -> None:
        app.shell.events.unregister("post_execute", end_after_reply)
        threading.Thread(target=_end_kernel, args=(app,), daemon=True).start()

    # post_execute and not post_run_cell, which silent cells and widgets' callbacks lack
    app.shell.events.register("post_execute", end_after_reply)


class _Question:
    """Whether the kernel may end, and a clock that runs while nothing else does."""

    last: _Question | None = None

    def __init__(self, app: Any, wait: float, idle: float) -> None:
        import ipywidgets
        from IPython.display import display

        if _Question.last is not None:
            _Question.last._forget()
        _Question.last = self
        self.since = time.monotonic()  # nothing was run
        self._app, self._wait = app, wait
        self._idle: float | None = idle
        self._clock: Any = None
        text = (
            "The kernel stays for the exercises. It ends by itself "
            f"{idle / 60:g} minutes after the last cell that you run; this cell, run "
            "again, ends it at once."
        )
        end = ipywidgets.Button(description="End now")
        keep = ipywidgets.Button(description="Keep it")
        end.on_click(lambda _: self._end())
        keep.on_click(lambda _: self._keep())
        box = ipywidgets.VBox([ipywidgets.HTML(text), ipywidgets.HBox([end, keep])])
        bundle = {**box._repr_mimebundle_(), "text/plain": text}
        self._output = display(bundle, raw=True, display_id=True)
        app.shell.events.register("pre_execute", self._stop_clock)
        app.shell.events.register("post_execute", self._start_clock)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._app.kernel.io_loop.remove_timeout(self._clock)
            self._clock = None

    def _start_clock(self) -> None:
        self._stop_clock()
        self.since = time.monotonic()
        if self._idle is not None:
            self._clock = self._app.kernel.io_loop.call_later(self._idle, self._end)

    def _forget(self) -> None:
        self._stop_clock()
        self._app.shell.events.unregister("pre_execute", self._stop_clock)
        self._app.shell.events.unregister("post_execute", self._start_clock)

    def _keep(self) -> None:
        self._stop_clock()
        self._idle = None
        self._say("The kernel stays. Run this cell again to end it.")

    def _end(self) -> None:
        self._say(_free_memory(self._wait))
        threading.Thread(target=_end_kernel, args=(self._app,), daemon=True).start()

    def _say(self, text: str) -> None:
        self._output.update({"text/plain": text}, raw=True)


def _free_memory(wait: float) -> str:
    """End all that this kernel started; what there is to say of it."""
    for action in _last_actions:
        with suppress(Exception):
            action()
    logging.disable(logging.CRITICAL)  # or vLLM reports the death of its engine
    ended = _end_children(wait)
    processes = "child process" if ended == 1 else "child processes"
    return (
        f"Ended {ended} {processes}. The kernel ends now; its memory is free again.\n"
        "JupyterLab shows No Kernel within ten seconds, Notebook 7 says Kernel Dead.\n"
        "Wait for that before you run a cell: it starts a fresh kernel."
    )


def _kernel_app() -> Any | None:
    """The ipykernel application that this process runs, None outside a kernel."""
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if kernelapp is None or not kernelapp.IPKernelApp.initialized():
        return None
    return kernelapp.IPKernelApp.instance()


def _end_children(wait: float) -> int:
    """Ask the direct children to end, force what is left; how many children it were."""
    children = _descendants(recursive=False)
    # Taken now: a worker whose parent dies is nobody's child afterwards.
    family = set(_descendants())
    for child in children:  # they end their own workers
        with suppress(psutil.Error):
            child.terminate()
    _wait_until_gone(family, wait)
    for process in family.union(_descendants()):
        with suppress(psutil.Error):
            process.kill()
    _wait_until_gone(family, 1.0)
    return len(children)


def _descendants(recursive: bool = True) -> list[psutil.Process]:
    """This process's living children, without multiprocessing's resource tracker.

    The tracker ends with the kernel, and removes shared memory that was left behind.
    """
    children = psutil.Process().children(recursive=recursive)
    return [p for p in children if _is_alive(p) and not _is_resource_tracker(p)]


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in a for a in process.cmdline())
    except psutil.Error:
        return False


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie holds no memory and counts as gone."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait_until_gone(processes: Iterable[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _end_kernel(app: Any) -> None:
    """End the kernel from a thread: by its server, else by itself, else by force."""
    time.sleep(REPLY_SECONDS)
    connection_file = Path(app.abs_connection_file)
    if not _shut_down_by_server(connection_file):
        app.kernel.io_loop.add_callback(app.kernel.do_shutdown, False)
    time.sleep(EXIT_SECONDS)
    _end_children(wait=0.0)  # a cell that was queued behind may have started some
    os._exit(0)


def _shut_down_by_server(connection_file: Path) -> bool:
    """Have the Jupyter server that owns the kernel end it; False if there is none.

    Each server that left a file beside the kernel's is asked (REST API, api/kernels):
    those that do not own the kernel answer 404, and those that are gone not at all.
    """
    import httpx

    kernel_id = connection_file.stem.removeprefix("kernel-")
    asked = False
    for server in _servers(connection_file.parent):
        # A server whose token is empty wants the pair that a browser's page would send.
        xsrf = secrets.token_hex(16)
        headers = {"Cookie": f"_xsrf={xsrf}", "X-XSRFToken": xsrf}
        if server.get("token"):
            headers["Authorization"] = f"token {server['token']}"
        try:
            answer = httpx.delete(
                f"{server['url'].rstrip('/')}/api/kernels/{kernel_id}",
                headers=headers,
                timeout=REQUEST_SECONDS,
                trust_env=False,  # past any proxy
                verify=False,  # its certificate is made for a name, not an address
            )
        except httpx.ReadTimeout:
            asked = True  # it may be waiting for this very process to end
        except (httpx.HTTPError, httpx.InvalidURL):
            continue  # a server that is gone
        else:
            if answer.is_success:
                return True
    return asked


def _servers(runtime_dir: Path) -> Iterator[dict[str, Any]]:
    """What the Jupyter servers that run, or ran, here say of themselves."""
    for path in sorted(runtime_dir.glob("jpserver-*.json")):
        with suppress(OSError, ValueError):
            server = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(server, dict) and isinstance(server.get("url"), str):
                yield server
