"""A family that won't go: one process ignores SIGTERM, its child is in a session of its
own and ignores SIGTERM too. Prints both pids, in one line.

    family_child.py keeper    the same, kept for this process; prints the keeper's first
"""

import json
import os
import signal
import subprocess
import sys

WAIT = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"

if __name__ == "__main__":
    if sys.argv[1:] == ["keeper"]:
        from helpers.internals.engine import keeper

        module, owner = keeper.__name__, str(os.getpid())
        command = [sys.executable, "-m", module, owner, sys.executable, __file__]
        subprocess.Popen(command, start_new_session=True).wait()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", WAIT], start_new_session=True)
        print(json.dumps([os.getppid(), os.getpid(), child.pid]), flush=True)
        signal.pause()
