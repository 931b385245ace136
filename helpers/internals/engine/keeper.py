"""A process that ends with this one, however this one ends.

    python -m helpers.internals.engine.keeper OWNER_PID COMMAND...

A command goes in; out comes a `KeptProcess`. Its keeper, the program above, runs it and
ends it when SIGTERM comes or the owner is gone, even by SIGKILL. Linux only.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from .exceptions import ModelLoadError

GRACE_SECONDS = 3.0  # For an orderly end; a server can wait for clients without limit.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class KeptProcess:
    """A command that runs until `stop()`, or until this process ends in any way.

    `log` is the file of what it prints, which stays; `pid` is the keeper's.
    """

    def __init__(self, command: list[str], **variables: str) -> None:
        """Start `command` with `variables` on top of the environment."""
        descriptor, name = tempfile.mkstemp(".log", "vllm-")
        self.log = Path(name)
        words = [sys.executable, "-m", __name__, str(os.getpid()), *command]
        # The stop button does not reach another session.
        options = {"env": os.environ | variables, "start_new_session": True}
        options |= {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with open(descriptor, "wb") as output:
            self._keeper = subprocess.Popen(words, stdout=output, **options)
        self.pid = self._keeper.pid

    def check(self) -> None:
        """Raise `ModelLoadError` with the end of the log if the command has ended."""
        if (status := self._keeper.poll()) is not None:
            tail = self.log.read_text("utf-8", "replace")[-2000:]
            raise ModelLoadError(
                f"{self!r} has died (status {status}; 0 where only its engine did). "
                f"The end of its log, {self.log}:\n{tail}"
            )

    def stop(self) -> None:
        """End the command and all that it started; raise as `check` if it had died."""
        if self._keeper.returncode is None:  # Else its end is known already.
            self.check()
            self._keeper.terminate()
            self._keeper.wait()


def keep(owner: int, command: list[str]) -> int | None:
    """Run `command` until it ends, SIGTERM comes or `owner` is gone; leave nothing."""
    prctl, keeper = ctypes.CDLL(None).prctl, os.getpid()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # Orphans of the command become children here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    def tie_to_keeper() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != keeper:  # It was killed before that.
            os._exit(1)

    try:
        child = subprocess.Popen(command, preexec_fn=tie_to_keeper)
        while os.getppid() == owner:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(0.2)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_family()


def end_family() -> None:
    """Terminate all children; after `GRACE_SECONDS` kill what is left of the family."""
    children = psutil.Process().children()
    for process in children:
        process.terminate()
    psutil.wait_procs(children, GRACE_SECONDS)
    while family := psutil.Process().children(recursive=True):
        for process in family:
            with suppress(psutil.NoSuchProcess):  # Its parent was quicker.
                process.kill()
        psutil.wait_procs(family, 1.0)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
