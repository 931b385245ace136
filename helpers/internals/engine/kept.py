"""A process that ends with this one: started with its log in a file, and ended.

A command goes in; a process comes out that `keeper` runs and whose end it guarantees.
It knows nothing of what the command does.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import keeper
from .exceptions import ModelLoadError

_LOG_TAIL = 2000  # characters of the log that an error quotes


class KeptProcess:
    """A command that runs until `stop()`, or until this process ends in any way.

    `log` is the file of what it prints, which stays; `pid` is the keeper's.
    """

    def __init__(self, command: list[str], **variables: str) -> None:
        """Start `command` with `variables` on top of the environment."""
        descriptor, name = tempfile.mkstemp(".log", "vllm-")
        self.log = Path(name)
        with open(descriptor, "wb") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", keeper.__name__, str(os.getpid()), *command],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # or the stop button would reach it as well
            )

        self.pid = self._keeper.pid

    def check(self) -> None:
        """Raise `ModelLoadError` with the end of the log if the command has ended."""
        status = self._keeper.poll()
        if status is not None:
            tail = self.log.read_text("utf-8", "replace")[-_LOG_TAIL:]
            raise ModelLoadError(
                f"{self!r} has died (status {status}; 0 where only its engine did). "
                f"The end of its log, {self.log}:\n{tail}"
            )

    def stop(self) -> None:
        """End the command and all that it started; raise as `check` if it had died."""
        if self._keeper.returncode is None:  # else its end is known already
            self.check()
            self._keeper.terminate()
            self._keeper.wait()
