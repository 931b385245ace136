"""A batch on two nodes, of which one loses its worker, finished by one engine."""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import helpers.scaling
from helpers.batch import RayEngine, run_batch
from helpers.internals.batch.journal import read_records

FOLDER = Path(sys.argv[1])
CALLS = FOLDER / "calls"
CALLS.mkdir()
GREEDY = {"temperature": 0, "max_tokens": 60}
MODEL = "tiny-thinker"
result = {}


class WatchedWorker(helpers.scaling.Worker):
    """Leaves a file for each batch, named after process and node."""

    def __init__(self, *args):
        tempfile.tempdir = str(FOLDER)
        super().__init__(*args)

    def __call__(self, batch):
        done = super().__call__(batch)
        node = ray.get_runtime_context().get_node_id()
        (CALLS / f"{os.getpid()}-{node}-{time.monotonic_ns()}").touch()
        return done


def calls() -> list[list[str]]:
    return [path.name.split("-") for path in CALLS.iterdir()]


def kill_a_worker() -> None:
    """Kill one worker once both have answered a batch."""
    while len({pid for pid, _, _ in calls()}) < 2:
        time.sleep(0.01)
    result["nodes_at_work"] = len({node for _, node, _ in calls()})
    os.kill(int(calls()[0][0]), signal.SIGKILL)


class BrokenWorker(helpers.scaling.Worker):
    """Fails where the others load their model."""

    def __init__(self, *args):
        raise OSError("no such weights")


def error_of(engine="ray", **arguments):
    try:
        run_batch(MODEL, ["hello"], engine=engine, progress=False, **arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]


def two_nodes(attempts: int = 3) -> Cluster:
    """Ray gives its processes 30 seconds to start, which a busy machine may exceed."""
    head = {"num_cpus": 1, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1)
    except Exception:
        if attempts == 1:
            raise
        return two_nodes(attempts - 1)
    return cluster


result["bad_sampling"] = error_of(sampling_params={"temperature": "hot"})
prompts = [{"id": f"q{n}", "prompt": f"What is {n} + {n + 8}?"} for n in range(200)]
prompts[7] = {"id": "q7", "prompt": ""}
options = {"sampling_params": GREEDY, "retry_truncated": 1}
cluster = two_nodes()
helpers.scaling.Worker = WatchedWorker
two = RayEngine(2, cluster.address, batch_size=8, max_seq_length=512)
output = FOLDER / "answers.jsonl"
killer = threading.Thread(target=kill_a_worker)
killer.start()
run_batch(MODEL, prompts, engine=two, output=output, **options)
killer.join()
result["ray_ended"] = not ray.is_initialized()
helpers.scaling.Worker = BrokenWorker
result["broken"] = error_of(RayEngine(1, cluster.address))
cluster.shutdown()
result["calls"] = len(calls())
result["left"] = [path.name for path in FOLDER.glob("unsloth_*")]
result["records"] = list(read_records(output))

# What the cluster left half done one engine finishes.
output.write_bytes(b"".join(output.read_bytes().splitlines(True)[:150:2]) + b'{"in')
from helpers.loading import FastLanguageModel  # noqa: E402

model, _ = FastLanguageModel.from_pretrained(
    MODEL, max_seq_length=512, fast_inference=True
)
run_batch(model, prompts, output=output, **options)
result["resumed"] = list(read_records(output))
print(json.dumps(result))
