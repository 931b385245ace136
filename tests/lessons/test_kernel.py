"""shutdown_kernel() in kernels that really run, in every place that starts them.

nbclient, and so nbmake, nbconvert and papermill, end a kernel's whole process group
themselves when the notebook is through. What the cell did is therefore recorded inside
the cell, after the call; the raw kernel and the server have nobody who cleans up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

GONE_SECONDS = 15.0
START_SECONDS = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]

FAMILY_MODULE = '''
import json, multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path

import psutil


def start_worker():
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def ignore_signals(ready):
    """A child that only SIGKILL ends, as an engine stuck in a kernel call is."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_worker()
    ready.set()
    while True:
        signal.pause()


def end_politely(ready):
    """A child that, when asked, takes its leave in a file and abandons its own."""
    def leave(signum, frame):
        Path("left_politely").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    start_worker()
    ready.set()
    while True:
        signal.pause()


def start(target):
    """A non-daemon spawned child, like vLLM's engine core, with a child of its own."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=target, args=(ready,), daemon=False)
    child.start()
    assert ready.wait(60)
    return child


def record(name):
    """Write who is there: this kernel first, then all of its descendants."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    rows = [[p.pid, p.create_time(), " ".join(p.cmdline())] for p in family
            if p.status() != psutil.STATUS_ZOMBIE]
    Path(f"{name}.json").write_text(json.dumps(rows))
'''

START_CHILD = "import family; child = family.start(family.ignore_signals)"
RECORD = "import family; family.record('before')"
RECORD_AFTER = "family.record('after')"
SHUTDOWN = (
    f"from helpers.kernel import shutdown_kernel\nshutdown_kernel()\n{RECORD_AFTER}"
)
# Keeps the suite short; the raw kernel is tested with the default wait.
QUICK_SHUTDOWN = (
    f"import helpers.kernel\nhelpers.kernel.CHILD_SECONDS = 1.0\n{SHUTDOWN}"
)
SOURCE_SHUTDOWN = (
    "import IPython\n"
    "app = IPython.Application.instance()\n"
    "app.kernel.do_shutdown(restart=False)"
)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with Jupyter's runtime files of its own; nothing recorded survives."""
    for variable in ("RUNTIME", "CONFIG", "DATA"):
        monkeypatch.setenv(f"JUPYTER_{variable}_DIR", str(tmp_path / variable.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    # A proxy would answer in the server's place if it were asked.
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    (tmp_path / "family.py").write_text(FAMILY_MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if (tmp_path / "before.json").exists():
        for process in alive(tmp_path):
            process.kill()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def recorded(workdir: Path, name: str) -> list[list]:
    return json.loads((workdir / f"{name}.json").read_text())


def alive(workdir: Path) -> list[psutil.Process]:
    """Which of the processes that were recorded before the shutdown still run."""
    found = []
    for pid, created, _ in recorded(workdir, "before"):
        try:
            process = psutil.Process(pid)
            if process.create_time() != created:
                continue  # another process that was given the same number
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def check_all_gone(workdir: Path, with_child: bool) -> None:
    """The children ended inside the cell, the kernel after it, all within 15 s."""
    before = recorded(workdir, "before")
    trackers = [row for row in before if "resource_tracker" in row[2]]
    assert len(before) - len(trackers) == (3 if with_child else 1), before
    assert len(trackers) == int(with_child)
    # In mid-cell: the kernel and the tracker live, child and grandchild do not.
    assert recorded(workdir, "after") == [before[0], *trackers]
    assert wait_for(lambda: not alive(workdir), GONE_SECONDS), alive(workdir)


def notebook(with_child: bool) -> nbformat.NotebookNode:
    cells = [*([START_CHILD] if with_child else []), RECORD, QUICK_SHUTDOWN]
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return node


def execute(
    client: BlockingKernelClient,
    code: str,
    silent: bool = False,
    allow_stdin: bool = False,
) -> str:
    """Run one cell, wait for reply and idle; what it printed and showed.

    `allow_stdin` says as a front end does that somebody is there to answer questions.
    """
    output: list[str] = []

    def collect(message: dict) -> None:
        if message["msg_type"] == "stream":
            output.append(message["content"]["text"])
        elif message["msg_type"] == "display_data":
            output.append(message["content"]["data"]["text/plain"])

    reply = client.execute_interactive(
        code,
        silent=silent,
        allow_stdin=allow_stdin,
        timeout=START_SECONDS,
        output_hook=collect,
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(output)


@contextmanager
def raw_kernel(**variables: str) -> Iterator[BlockingKernelClient]:
    """Start a kernel that nobody watches, restarts or cleans up after."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **variables})
    # Else it would stay as a zombie, as no kernel of a server does.
    threading.Thread(target=manager.provisioner.process.wait, daemon=True).start()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=START_SECONDS)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def raw_client(workdir: Path) -> Iterator[BlockingKernelClient]:
    with raw_kernel() as client:
        yield client


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "child"])
def test_raw_kernel(
    workdir: Path, raw_client: BlockingKernelClient, with_child: bool
) -> None:
    if with_child:
        execute(raw_client, START_CHILD)
    execute(raw_client, RECORD)
    output = execute(raw_client, SHUTDOWN)
    ended = "2 child processes." if with_child else "0 child processes."
    assert output.startswith(f"Ended {ended} The kernel ends now;")
    assert "No Kernel" in output
    check_all_gone(workdir, with_child)


def test_source_cell_releases_nothing(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    """Why there is more to it than do_shutdown: the exit waits for the child."""
    execute(raw_client, START_CHILD)
    execute(raw_client, RECORD)
    # Registered after multiprocessing's own hook, so run before it.
    execute(raw_client, "import atexit; atexit.register(family.record, 'at_exit')")
    execute(raw_client, SOURCE_SHUTDOWN)
    assert wait_for((workdir / "at_exit.json").exists, GONE_SECONDS)
    everyone = len(recorded(workdir, "before"))
    assert not wait_for(lambda: len(alive(workdir)) < everyone, 3.0)


def test_polite_child_may_clean_up(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    execute(raw_client, "import family; child = family.start(family.end_politely)")
    execute(raw_client, RECORD)
    execute(raw_client, QUICK_SHUTDOWN)
    assert (workdir / "left_politely").exists()
    check_all_gone(workdir, with_child=True)  # the worker that it orphaned included


def test_a_cell_that_awaits_something_goes_on_to_its_end(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    execute(raw_client, RECORD)
    rest = "\nimport asyncio\nawait asyncio.sleep(2.5)\nprint('the last line')"
    assert execute(raw_client, SHUTDOWN + rest).endswith("the last line\n")
    check_all_gone(workdir, with_child=False)


def test_exit_that_hangs_is_forced(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    """Python's exit waits for a thread that is not a daemon; silent cells end too."""
    execute(raw_client, "import threading; wait = threading.Event().wait")
    execute(raw_client, "threading.Thread(target=wait, daemon=False).start()")
    execute(raw_client, RECORD)
    execute(raw_client, SHUTDOWN, silent=True)
    check_all_gone(workdir, with_child=False)


def test_a_reader_keeps_the_kernel_after_run_all_and_ends_it_by_this_cell(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    execute(raw_client, START_CHILD)
    for _ in range(2):  # Run All, and once more with other values.
        execute(raw_client, RECORD, allow_stdin=True)
        output = execute(raw_client, QUICK_SHUTDOWN, allow_stdin=True)
        assert output.startswith("The kernel stays") and "10 minutes" in output
    assert len(recorded(workdir, "after")) == len(recorded(workdir, "before")) == 4
    output = execute(raw_client, QUICK_SHUTDOWN, allow_stdin=True)
    assert output.startswith("Ended 2 child processes. The kernel ends now;")
    check_all_gone(workdir, with_child=True)
    assert list((workdir / "runtime").glob("waits-*")) == []


def test_a_waiting_kernel_gives_way_to_another_and_a_busy_one_does_not(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    ask = "import helpers.kernel; helpers.kernel.make_room(float('inf'))"
    (workdir / "runtime").mkdir(exist_ok=True)
    stale = workdir / "runtime" / "waits-in-last-cell-1"  # Of an earlier process 1.
    stale.write_text("killed.ipynb")
    os.utime(stale, (0, 0))
    (workdir / "runtime" / "waits-in-last-cell-999999999").touch()
    execute(raw_client, START_CHILD)
    execute(raw_client, RECORD)
    execute(raw_client, QUICK_SHUTDOWN, allow_stdin=True)
    # Asked from a cell of the kernel itself, which does not wait while one runs.
    assert execute(raw_client, ask, allow_stdin=True) == ""
    assert len(alive(workdir)) == 4
    with raw_kernel(JPY_SESSION_NAME="/a/folder/other.ipynb") as other:
        execute(other, QUICK_SHUTDOWN.replace(RECORD_AFTER, ""), allow_stdin=True)
        output = execute(raw_client, ask, allow_stdin=True)
        assert output.startswith("Ended the kernel of other.ipynb:")
    assert len(alive(workdir)) == 4
    waiting = [note.name for note in (workdir / "runtime").glob("waits-*")]
    kernel = recorded(workdir, "before")[0][0]
    assert waiting == [f"waits-in-last-cell-{kernel}"]


def test_a_load_that_lacks_memory_ends_a_waiting_kernel_first(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    """This machine has memory enough, so the loading kernel is told another figure."""
    execute(raw_client, RECORD)
    execute(raw_client, QUICK_SHUTDOWN, allow_stdin=True)
    load = "FastLanguageModel.from_pretrained('tiny-thinker', load_in_4bit=False)"
    with raw_kernel() as loader:
        execute(loader, "from helpers import FastLanguageModel")
        assert "is needed here" not in execute(loader, load)
        assert len(alive(workdir)) == 1
        execute(loader, "import helpers.kernel as k; k.free_memory_mib = lambda: 9")
        assert "Ended the kernel of process" in execute(loader, load)
        assert alive(workdir) == []


def test_a_kernel_that_nobody_uses_ends_by_itself(
    workdir: Path, raw_client: BlockingKernelClient
) -> None:
    ask = f"import helpers.kernel\nhelpers.kernel.IDLE_SECONDS = 2.0\n{QUICK_SHUTDOWN}"
    execute(raw_client, START_CHILD)
    execute(raw_client, ask, allow_stdin=True)
    # A cell that takes longer than the clock stops it; its end starts it again.
    execute(raw_client, "import time; time.sleep(2.5)", allow_stdin=True)
    execute(raw_client, RECORD, allow_stdin=True)
    assert len(alive(workdir)) == 4
    assert wait_for(lambda: not alive(workdir), GONE_SECONDS), alive(workdir)


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "child"])
def test_nbclient(workdir: Path, with_child: bool) -> None:
    node = notebook(with_child)
    NotebookClient(node, timeout=START_SECONDS).execute()  # DeadKernelError else
    assert "The kernel ends now" in node.cells[-1].outputs[0]["text"]
    check_all_gone(workdir, with_child)


RUNNERS = {
    "nbmake": ["pytest", "--nbmake", "-p", "no:cacheprovider", "in.ipynb"],
    "nbconvert": ["nbconvert", "--execute", "--to=notebook", "in.ipynb"],
    "papermill": ["papermill", "in.ipynb", "in.nbconvert.ipynb"],
}


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "child"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_runner(workdir: Path, runner: str, with_child: bool) -> None:
    nbformat.write(notebook(with_child), workdir / "in.ipynb")
    run = subprocess.run(
        [sys.executable, "-m", *RUNNERS[runner]], capture_output=True, text=True
    )
    log = run.stdout + run.stderr
    assert run.returncode == 0, log
    assert "died" not in log and "DeadKernel" not in log, log
    if runner != "nbmake":
        executed = nbformat.read(workdir / "in.nbconvert.ipynb", as_version=4)
        assert "The kernel ends now" in executed.cells[-1].outputs[0]["text"]
    check_all_gone(workdir, with_child)


class Server:
    """A Jupyter server in a child process, asked over its REST API."""

    def __init__(self, workdir: Path, token: str) -> None:
        self.runtime = workdir / "runtime"
        self.log = workdir / "server.log"
        self.token = token
        command = [sys.executable, "-m", "jupyter_server", "--no-browser"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--allow-root"]
        command += ["--ServerApp.password=", f"--IdentityProvider.token={token}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.info = self.runtime / f"jpserver-{self.process.pid}.json"
        try:
            assert wait_for(self.is_up, START_SECONDS), self.log.read_text()
        except BaseException:
            self.stop()
            raise

    def is_up(self) -> bool:
        try:
            return self.ask("api/kernels") == []
        except (OSError, ValueError):
            return False

    def ask(self, path: str, body: dict | None = None) -> object:
        url = json.loads(self.info.read_text())["url"]
        headers = {"Cookie": "_xsrf=00", "X-XSRFToken": "00"}
        if self.token:
            headers["Authorization"] = f"token {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=START_SECONDS) as answer:
            return json.load(answer)

    def stop(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def is_ready(client: BlockingKernelClient) -> bool:
    """Whether a server's kernel answers; while it starts it may miss a heartbeat."""
    try:
        client.wait_for_ready(timeout=START_SECONDS)
    except RuntimeError:  # "Kernel died before replying to kernel_info"
        return False
    return True


@pytest.mark.parametrize(
    ("with_child", "token"),
    [(False, "secret"), (True, "secret"), (False, "")],
    ids=["alone", "child", "no-token"],
)
def test_server(workdir: Path, with_child: bool, token: str) -> None:
    """The owner ends the kernel, so that it neither restarts nor mourns it."""
    server = Server(workdir, token)
    # Beside it, what servers that crashed leave behind; sorted before the real one.
    stale = {"url": "http://127.0.0.1:9/", "token": "old"}
    (server.runtime / "jpserver-0.json").write_text(json.dumps(stale))
    (server.runtime / "jpserver-00.json").write_text("{")
    try:
        session = {"path": "a.ipynb", "type": "notebook", "name": "a"}
        session["kernel"] = {"name": "python3"}
        kernel_id = server.ask("api/sessions", session)["kernel"]["id"]
        client = BlockingKernelClient(
            connection_file=str(server.runtime / f"kernel-{kernel_id}.json")
        )
        client.load_connection_file()
        client.start_channels()
        try:
            assert wait_for(lambda: is_ready(client), START_SECONDS)
            if with_child:
                execute(client, START_CHILD)
            execute(client, RECORD)
            execute(client, QUICK_SHUTDOWN)
        finally:
            client.stop_channels()
        check_all_gone(workdir, with_child)
        # A server that took it for a crash keeps the kernel in its list to restart it.
        assert wait_for(lambda: server.ask("api/kernels") == [], 5.0)
        assert server.ask("api/sessions") == []
        log = server.log.read_text().lower()
        assert f"kernel shutdown: {kernel_id}" in log and "restart" not in log, log
        assert psutil.Process(server.process.pid).children() == []
    finally:
        server.stop()


@pytest.mark.parametrize("python", [["-c"], ["-m", "IPython", "-c"]], ids=" ".join)
def test_outside_a_kernel_nothing_ends(workdir: Path, python: list[str]) -> None:
    code = (
        "import subprocess, sys; from helpers.kernel import shutdown_kernel; "
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1); "
        "shutdown_kernel(); print(child.poll()); child.communicate(b'end')"
        "; print('still here')"
    )
    run = subprocess.run(
        [sys.executable, *python, code], capture_output=True, text=True, check=True
    )
    assert "Not in a Jupyter kernel: nothing to shut down.\nNone\n" in run.stdout
    assert "still here" in run.stdout and run.stderr == ""
