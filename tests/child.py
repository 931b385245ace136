"""Run the program of a test, `NAME_child.py` beside it, in a fresh Python."""

import json
import os
import subprocess
import sys
from pathlib import Path


def find_child(name: str) -> Path:
    """The path of tests/.../`name`_child.py; each such name is there once."""
    (path,) = Path(__file__).parent.rglob(f"{name}_child.py")
    return path


def run_child(
    name: str,
    *arguments: str,
    timeout: float = 300,
    **variables: str,
) -> dict:
    """What `name`_child.py says: its last line is JSON, the rest what it printed.

    `variables` go on top of the environment; `timeout` is in seconds.
    """
    done = subprocess.run(
        [sys.executable, str(find_child(name)), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "DEVICE": "cpu", "LOG_LEVEL": "error", **variables},
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    *printed, last = done.stdout.splitlines()
    return {**json.loads(last), "stdout": printed, "stderr": done.stderr}
