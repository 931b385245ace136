"""Kill a kernel that serves at moments that chance picks; print what is left of it.

    killed_kernels_child.py COUNT    a third each: loading, idle, in mid-stream
    killed_kernels_child.py 50 --lanes 8 --cache-mib 512 --loading 60    on a GPU

What the kernel has started carries a mark in its environment, and has ten seconds to
end. The last line is JSON: for each kill the moment, the seconds until all were gone,
what was left of processes and of the port, and the MiB of GPU memory that the processes
held before and after; and the memory of the GPUs before the first kill and at most ten
seconds after the last one.

Several lanes kill at the same time, in turn on the GPUs that there are. There vLLM must
not measure free memory, which changes as others load: `--cache-mib` says what to take.
"""

import argparse
import json
import os
import queue
import random
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pynvml
from jupyter_client import KernelManager

from helpers.internals.machine.devices import list_gpus

LONGEST_S = 10.0
MARK = "NUMBER_OF_THE_KILLED_KERNEL"
MOMENTS = ("loading", "streaming", "idle")
START = """
import threading
from helpers.serving import serve
server = serve("tiny-thinker", **{options})
print("port", server.url.split(":")[2].split("/")[0])
"""
STREAM = """
import openai
client = openai.OpenAI(base_url=server.url, api_key=server.key)
options = {"max_tokens": 3500, "stream": True, "extra_body": {"ignore_eos": True}}
for part in client.completions.create(model=server.model, prompt="1 + 1", **options):
    print("part")
"""


def started_by(number: int) -> list[psutil.Process]:
    """The processes that live with the mark of this kernel in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(number):
                found.append(process)
    return found


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def used_mib() -> list[int]:
    """MiB in use on each GPU that this process may use."""
    return [gpu.used_mib for gpu in list_gpus()]


def held_mib(family: list[psutil.Process]) -> int:
    """MiB of GPU memory that NVML counts for these processes, dead or alive."""
    pids, held = {process.pid for process in family}, 0
    if not (gpus := list_gpus()):
        return held
    pynvml.nvmlInit()
    for gpu in gpus:
        card = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        for one in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
            held += (one.usedGpuMemory or 0) * (one.pid in pids)
    pynvml.nvmlShutdown()
    return held >> 20


class Kernel:
    """A real kernel with the client that runs code in it."""

    def __init__(self, number: int) -> None:
        self.manager, self.chance = KernelManager(), random.Random(2026 + number)
        own = {MARK: str(number)}
        if gpus := list_gpus():
            own["CUDA_VISIBLE_DEVICES"] = str(gpus[number % len(gpus)].index)
        self.manager.start_kernel(env=os.environ | own)
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

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.manager.provisioner.process.wait()
        self.client.stop_channels()
        self.manager.cleanup_resources()


def wait_for(moment: str, kernel: Kernel, options: argparse.Namespace) -> int | None:
    """Start a server in the kernel and wait for the moment; return its port."""
    asked = {}
    if options.cache_mib:
        asked = {"kv_cache_memory_bytes": options.cache_mib << 20}
        asked |= {"gpu_memory_utilization": 0.05, "enforce_eager": True}
    start = START.format(options=asked)
    if moment == "loading":
        kernel.client.execute(start)
        while not psutil.Process(kernel.pid).children():
            time.sleep(0.01)
        time.sleep(kernel.chance.uniform(0, options.loading))
        return None
    port = int(kernel.printed(start, "port").split()[1])
    if moment == "streaming":
        kernel.printed(STREAM, "part")
    time.sleep(kernel.chance.uniform(0, 2))
    return port


def kill_once(number: int, options: argparse.Namespace) -> dict:
    kernel, moment = Kernel(number), MOMENTS[number % len(MOMENTS)]
    found, port = {"moment": moment}, None
    try:
        port = wait_for(moment, kernel, options)
    except (RuntimeError, queue.Empty) as error:
        found["error"] = repr(error)
    family = [one for one in started_by(number) if one.pid != kernel.pid]
    found |= {"processes": len(family), "gpu_mib": [held_mib(family)]}
    kernel.kill()
    killed = time.monotonic()
    while (left := started_by(number)) and time.monotonic() - killed < LONGEST_S:
        time.sleep(0.05)
    found["seconds"] = round(time.monotonic() - killed, 1)
    found["left"] = [process.cmdline() for process in left]
    found["port"] = bool(port and is_open(port))
    found["gpu_mib"].append(held_mib(family))
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--cache-mib", type=int, help="of each server")
    parser.add_argument("--loading", type=float, default=25, help="seconds at most")
    options = parser.parse_args()
    before = used_mib()
    with ThreadPoolExecutor(options.lanes) as lanes:
        asked = range(options.count)
        kills = list(lanes.map(lambda number: kill_once(number, options), asked))
    after = used_mib()
    end = time.monotonic() + LONGEST_S
    while any(a > b for a, b in zip(after, before, strict=True)):
        if time.monotonic() > end:
            break
        time.sleep(0.1)
        after = used_mib()
    print(json.dumps({"kills": kills, "gpu_mib": [before, after]}))


if __name__ == "__main__":
    main()
