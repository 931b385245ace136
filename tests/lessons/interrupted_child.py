"""Interrupt imports and loads half-way; what does the next call say?

Each moment has a fork of its own, since none of them can go on.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable

import helpers.loading


class Interrupter:
    """Send this process a SIGINT as a module is about to be imported."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)


def what_happens(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except BaseException as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def in_a_fork(module: str, *calls: Callable[[], object]) -> list[list[str]]:
    """What comes of the first call, interrupted at `module`, and of the others."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            sys.meta_path.insert(0, Interrupter(module))
            os.write(write, json.dumps([what_happens(call) for call in calls]).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        result = json.loads(answer.read())
    os.wait()
    return result


def import_through_helpers() -> object:
    return helpers.loading.FastLanguageModel


def load(**arguments: object) -> object:
    return helpers.loading.FastLanguageModel.from_pretrained(
        "tiny-thinker", max_seq_length=256, load_in_4bit=False, **arguments
    )


def load_fast() -> object:
    return load(fast_inference=True)


imports = [import_through_helpers] * 2
moments = {"unsloth_zoo": in_a_fork("unsloth_zoo", *imports)}
import_through_helpers()
for module in ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker"):
    moments[module] = in_a_fork(module, load_fast, load, load_fast)
print(json.dumps(moments))
