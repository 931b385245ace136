"""Batches that are killed, stopped and short of disk, on the real engine.

Children are forked from here once the engine is loaded: each has its copy of it, and
none has to load one.
"""

import json
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from helpers.batch import run_batch
from helpers.internals.batch.journal import read_records
from helpers.internals.batch.summary import summarise
from helpers.loading import FastLanguageModel

FOLDER = Path(sys.argv[1])
COUNT, KILLS = 220, 26
model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", max_seq_length=512, fast_inference=True, max_num_seqs=16
)

GREEDY = {"temperature": 0, "max_tokens": 48}
OPTIONS = {"retry_truncated": 1, "progress": False}
prompts = [{"id": f"q{n}", "prompt": f"What is {n} + {n + 8}?"} for n in range(COUNT)]
prompts[7] = {"id": "q7", "prompt": ""}
prompts[9]["sampling_params"] = {"temperature": "hot"}
result = {}


def run(output: Path, **changes):
    options = {"prompts": prompts, "sampling_params": GREEDY, **OPTIONS, **changes}
    return run_batch(model, output=output, **options)


def fork(output: Path, **changes) -> int:
    """Run a batch in a copy of this process, whose id is returned."""
    if pid := os.fork():
        return pid
    try:
        run(output, **changes)
        os._exit(0)
    finally:
        os._exit(1)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_again_and_again(output: Path, chance: random.Random) -> list[int]:
    """Kill the batch after some bytes more, KILLS times; the sizes that it left."""
    sizes = []
    for _ in range(KILLS):
        pid = fork(output)
        enough = size(output) + chance.randrange(1200)
        while size(output) <= enough and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sizes.append(size(output))
    return sizes


def at_size(output: Path, limit: int, act) -> threading.Thread:
    def watch() -> None:
        while size(output) < limit:
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def error_of(call, *args, **kwargs) -> list[str]:
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def fields(records) -> list[dict]:
    return [
        {k: v for k, v in record.items() if k not in ("started", "time")}
        for record in records
    ]


killed = FOLDER / "killed.jsonl"
result["sizes"] = kill_again_and_again(killed, random.Random(7))
result["left"] = len(killed.read_bytes().splitlines())
run(killed)
result["killed"] = fields(read_records(killed))
few, some = prompts[:40], prompts[:80]
answers = run_batch(model, few, GREEDY, **OPTIONS)
result["in_memory"] = [
    [r.id, r.thinking, r.response, r.complete, r.tokens, r.error, r.tries]
    for r in answers
]
result["prompts_kept"] = [r.prompt for r in answers] == few
answered = {x for x in killed.read_bytes().splitlines() if b'"error": null' in x}
run(killed)  # The sampling that vLLM refused is asked again, and refused again.
stays = answered and answered <= {*killed.read_bytes().splitlines()}
result["finished_stays"] = stays and fields(read_records(killed)) == result["killed"]
result["summary"] = repr(summarise(killed))

stopped = FOLDER / "stopped.jsonl"
pressed = []


def press() -> None:
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


watcher = at_size(stopped, 1, press)
try:
    run(stopped, prompts=some)
except KeyboardInterrupt:
    result["stop_seconds"] = time.monotonic() - pressed[0]
watcher.join()
result["stopped"] = len(stopped.read_bytes().splitlines())
run(stopped, prompts=some)
result["stopped_same"] = fields(read_records(stopped)) == result["killed"][:80]

full = FOLDER / "full.jsonl"
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
result["full"] = error_of(run, full, prompts=few)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
result["full_lines"] = [record["id"] for record in read_records(full)]
run(full, prompts=few)
result["full_same"] = fields(read_records(full)) == result["killed"][:40]

held = FOLDER / "held.jsonl"
pid = fork(held)
while not size(held):
    time.sleep(0.001)
result["locked"] = error_of(run, held)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)

result["other_job"] = {
    "sampling": error_of(run, killed, sampling_params={**GREEDY, "seed": 1}),
    "prompts": error_of(run, killed, prompts=few),
    "template": error_of(run, killed, chat_template_kwargs={"a": 1}),
}
result["bad_sampling"] = error_of(run, FOLDER / "bad.jsonl", sampling_params={"x": 1})
result["bad_ending"] = error_of(run, FOLDER / "bad.csv")

requests = FOLDER / "requests.jsonl"
with open(requests, "w") as file:
    for prompt in few:
        body = {"messages": [{"role": "user", "content": prompt["prompt"]}]}
        body |= {"model": "any", **prompt.get("sampling_params", {})}
        url = "/v1/chat/completions"
        line = {"custom_id": prompt["id"], "method": "POST", "url": url, "body": body}
        file.write(json.dumps(line) + "\n")
for name in ("answers.parquet", "answers.jsonl"):
    run(FOLDER / name, prompts=requests)
    run(FOLDER / name, prompts=str(requests))
    records = fields(read_records(FOLDER / name))
    for record, same in zip(records, result["killed"], strict=False):
        if record["error"]:
            record["error"] = same["error"]
    result[name] = records == result["killed"][:40]
result["folder"] = sorted(path.name for path in FOLDER.iterdir())
print(json.dumps(result))
