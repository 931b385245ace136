"""Run a command, and end all that it started when it or its owner ends.

    python -m helpers.internals.engine.keeper OWNER_PID COMMAND...

The owner starts this small process, which starts the command and waits. It ends the
command when SIGTERM comes and when the owner is gone, even by SIGKILL. It knows nothing
of vLLM, whose engine outlives an API server that is killed. Linux only.
"""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

import psutil

GRACE_SECONDS = 3.0  # for an orderly end; a server can wait for clients without limit
LOOK_SECONDS = 0.2  # between two looks at the owner
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class _EndedError(BaseException):
    """SIGTERM has come."""


def keep(owner: int, command: list[str]) -> int:
    """Run `command` until it ends, SIGTERM comes or `owner` is gone; its exit status.

    Of what it started nothing is left, not even a process whose parent died first.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become children here
    signal.signal(signal.SIGTERM, _raise_ended)
    child = subprocess.Popen(
        command, preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    )
    try:
        while os.getppid() == owner:
            try:
                return child.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                pass
    except _EndedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_family(child)
    return child.returncode


def _raise_ended(number: int, frame: FrameType | None) -> None:
    raise _EndedError


def end_family(child: subprocess.Popen) -> None:
    """Terminate a child; after `GRACE_SECONDS` kill what is left of all children."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    while family := psutil.Process().children(recursive=True):
        for process in family:
            process.kill()
        psutil.wait_procs(family, 1.0)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
