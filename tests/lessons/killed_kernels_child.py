"""Kill a kernel that serves at moments that chance picks; print what is left of it.

    killed_kernels_child.py COUNT    a third each: loading, idle, in mid-stream

Each time the processes that the kernel has started are listed just before SIGKILL, and
have ten seconds to end. The last line is JSON: for each kill the moment, the seconds
until all were gone, and what was left of processes and of the port.
"""

import json
import os
import random
import signal
import socket
import sys
import time

import psutil
from jupyter_client import KernelManager

LONGEST_S = 10.0
MOMENTS = ("loading", "streaming", "idle")
START = """
import threading
from helpers.serving import serve
server = serve("tiny-thinker")
print("port", server.url.split(":")[2].split("/")[0])
"""
STREAM = """
import openai
client = openai.OpenAI(base_url=server.url, api_key=server.key)
options = {"max_tokens": 3500, "stream": True, "extra_body": {"ignore_eos": True}}
for part in client.completions.create(model=server.model, prompt="1 + 1", **options):
    print("part")
"""


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Kernel:
    """A real kernel with the client that runs code in it."""

    def __init__(self) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.pid = self.manager.provisioner.pid

    def printed(self, code: str, word: str) -> str:
        """Run code; return the first line that it prints which begins with `word`."""
        self.client.execute(code)
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(message["content"]["traceback"]))
            text = message["content"].get("text", "")
            for line in text.splitlines():
                if line.startswith(word):
                    return line

    def kill(self) -> list[psutil.Process]:
        """SIGKILL; return what the kernel had started."""
        family = psutil.Process(self.pid).children(recursive=True)
        os.kill(self.pid, signal.SIGKILL)
        self.manager.provisioner.process.wait()
        self.client.stop_channels()
        self.manager.cleanup_resources()
        return family


def kill_once(moment: str, chance: random.Random) -> dict:
    kernel, port = Kernel(), None
    if moment == "loading":
        kernel.client.execute(START)
        while not psutil.Process(kernel.pid).children():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 25))
    else:
        port = int(kernel.printed(START, "port").split()[1])
        if moment == "streaming":
            kernel.printed(STREAM, "part")
        time.sleep(chance.uniform(0, 2))
    family, start = kernel.kill(), time.monotonic()
    left = family
    while left and time.monotonic() - start < LONGEST_S:
        left = [process for process in left if is_alive(process)]
        time.sleep(0.02)
    return {
        "moment": moment,
        "processes": len(family),
        "seconds": round(time.monotonic() - start, 1),
        "left": [process.cmdline() for process in left],
        "port": bool(port and is_open(port)),
    }


if __name__ == "__main__":
    chance = random.Random(2026)
    kills = []
    for number in range(int(sys.argv[1])):
        kills.append(kill_once(MOMENTS[number % len(MOMENTS)], chance))
        print(kills[-1], file=sys.stderr, flush=True)
    print(json.dumps({"kills": kills}))
