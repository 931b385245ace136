"""What only a GPU can show: notebooks, memory, estimates, and the stop button.

`make gpu-test` runs these on a machine whose GPU nothing else uses. Memory is read by
NVML, for the kernels from outside their processes. The models have published shapes
and random weights; on a GPU that is too small for them they have fewer layers. The
executed notebooks are kept in executed/.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from child import find_child, run_child
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from helpers.internals.engine.release import TOLERANCE_MIB
from helpers.internals.machine.devices import list_gpus, measure_gpu_memory
from helpers.models import estimate_memory, get_model
from tools.random_model import make_random_model

gpu = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "executed"  # nbmake collects nothing below a folder "_build".
NOTEBOOK_SECONDS = 1_800
KERNELS = 10  # For each of the two ways that vLLM runs.
CELL_SECONDS = 300
GONE_SECONDS = 15.0
SHAPES = {
    "qwen3-4b": get_model("Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"),
    "llama-3.2-3b": get_model("Llama-3.2-3B-Instruct-bnb-4bit"),
}
FULL_SIZE_MIB = 24_000
FEWER_LAYERS = 4
# What libraries keep of a load after its release: caches, workspaces, code.
KEPT_SHARE = 0.1
ESTIMATE_FACTOR = 1.08
ENGINES = {
    "in the kernel": ("0", "load_in_kernel()"),
    "in a child": ("1", "load_in_child()"),
}
ON_GPU = {"DEVICE": "cuda"}
COMPILE_CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
KERNEL = find_child("gpu_kernel")


def settled(limit: int) -> int:
    """MiB in use, once they are at most `limit` or the driver had its time."""
    deadline = time.monotonic() + GONE_SECONDS
    while (used := measure_gpu_memory()) > limit and time.monotonic() < deadline:
        time.sleep(0.2)
    return used


def copy_notebook(notebook: Path, model: str) -> Path:
    """A copy to run, with what a notebook finds by a relative path beside it."""
    folder = EXECUTED / model / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for link, target in (
        (folder.parent / "helpers", ROOT / "helpers"),
        (folder / "figures", ROOT / "notebooks" / "figures"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)
    return Path(shutil.copy(notebook, folder))


def run_nbmake(
    path: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", *arguments, str(path)],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_cell(
    client: BlockingKernelClient, code: str, *, allow_stdin: bool = False
) -> None:
    """Run a cell; `allow_stdin` says, as front ends do, that a reader is there."""
    reply = client.execute_interactive(
        code,
        allow_stdin=allow_stdin,
        timeout=CELL_SECONDS,
        output_hook=lambda message: None,
    )
    content = reply["content"]
    assert content["status"] == "ok", content


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    small = list_gpus()[0].total_mib < FULL_SIZE_MIB
    fewer = {"num_hidden_layers": FEWER_LAYERS} if small else {}
    folder = tmp_path_factory.mktemp("models")
    return {
        shape: make_random_model(folder / shape, shape, **fewer) for shape in SHAPES
    }


@gpu
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["tiny-thinker", "qwen3-4b"])
def test_notebook_runs_and_gives_the_memory_back(model, notebook, models):
    name = str(models[model]) if model in models else model
    start = measure_gpu_memory()
    done = run_nbmake(
        copy_notebook(notebook, model),
        "--overwrite",
        f"--nbmake-timeout={NOTEBOOK_SECONDS}",
        MODEL_NAME=name,
    )
    assert done.returncode == 0, done.stdout[-8_000:]
    assert settled(start + TOLERANCE_MIB) <= start + TOLERANCE_MIB


def test_copied_notebooks_are_collected():
    """Without a GPU: nbmake says nothing of a notebook that it leaves out."""
    copies = [copy_notebook(notebook, "collected") for notebook in NOTEBOOKS]
    try:
        done = run_nbmake(copies[0].parent, "--collect-only", "--quiet")
    finally:
        shutil.rmtree(EXECUTED / "collected")
    assert all(copy.name in done.stdout for copy in copies), done.stdout


@gpu
@pytest.mark.parametrize("reader", [False, True], ids=["alone", "reader"])
@pytest.mark.parametrize("place", ENGINES)
def test_shutdown_gives_the_memory_back(place, reader, monkeypatch):
    """At once where nobody can answer, by the second run where a reader is there."""
    in_child, load = ENGINES[place]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", in_child)
    imports = KERNEL.read_text()  # After %run a program that failed passes for "ok".
    start = measure_gpu_memory()
    with ThreadPoolExecutor(KERNELS) as pool:
        kernels = list(pool.map(lambda _: start_new_kernel(), range(KERNELS)))
        try:
            clients = [client for _, client in kernels]
            list(pool.map(lambda client: run_cell(client, imports), clients))
            at_once = KERNELS if in_child == "1" else 1
            with ThreadPoolExecutor(at_once) as loading:
                list(loading.map(lambda client: run_cell(client, load), clients))
            loaded = measure_gpu_memory()
            share = (loaded - start) / KERNELS
            assert share > 500
            left = []
            for number, client in enumerate(clients, start=1):
                if reader:
                    run_cell(client, "shutdown_kernel()", allow_stdin=True)
                run_cell(client, "shutdown_kernel()", allow_stdin=reader)
                expected = loaded - number * share
                left.append(round(settled(expected + TOLERANCE_MIB) - expected))
        finally:
            for manager, client in kernels:
                client.stop_channels()
                manager.shutdown_kernel(now=True)
    print(f"engine {place}: {share:.0f} MiB each, MiB left after each: {left}")
    assert max(left) <= TOLERANCE_MIB


def _estimate(shape: str, path: Path, load: dict[str, Any]) -> Any:
    config = json.loads((path / "config.json").read_text())
    spec, layers = SHAPES[shape], config["num_hidden_layers"]
    whole = spec.shape
    fixed = config["vocab_size"] * config["hidden_size"]
    per_layer = (whole.parameters - fixed) / whole.layers
    # Quantised while loading: no layer is kept in 16-bit.
    parameters = round(fixed + per_layer * layers)
    small = whole._replace(layers=layers, parameters=parameters, kept=fixed)
    spec = replace(spec, shape=small)
    return estimate_memory(
        spec, load["max_seq_length"], load["max_num_seqs"], load["load_in_4bit"]
    )


@gpu
def test_memory_estimates_and_release(models):
    """One kernel loads one model after the other; each is released before the next."""
    total = list_gpus()[0].total_mib
    loads, estimates, shapes = [], [], []
    for shape, in_4bit, length, concurrency, eager in (
        ("qwen3-4b", False, 2048, 8, False),
        ("llama-3.2-3b", False, 4096, 8, False),
        ("qwen3-4b", True, 4096, 4, True),
        ("llama-3.2-3b", True, 2048, 16, True),
        ("qwen3-4b", False, 8192, 4, True),
        ("llama-3.2-3b", False, 2048, 32, True),
    ):
        load = {
            "model_name": str(models[shape]),
            "max_seq_length": length,
            "load_in_4bit": in_4bit,
            "max_num_seqs": concurrency,
            "enforce_eager": eager,
        }
        estimates.append(_estimate(shape, models[shape], load))
        needed = estimates[-1].total_mib
        load["gpu_memory_utilization"] = round(1.2 * needed / total, 3)
        loads.append(load)
        shapes.append(shape)
    child = run_child("gpu_memory", json.dumps(loads), timeout=1_500, **ON_GPU)
    records = child["records"]
    assert len(records) == len(loads)
    wrong = []
    for load, shape, estimate, record in zip(
        loads, shapes, estimates, records, strict=True
    ):
        per_token = estimate.model.kv_bytes_per_token / 2**20
        wanted = load["max_seq_length"] * load["max_num_seqs"]
        pool = record["pool_tokens"] - wanted
        used = record["generate"] + record["context"] - pool * per_token
        ratio = estimate.total_mib / used
        print(
            f"{shape}, {'4' if load['load_in_4bit'] else '16'}-bit, "
            f"{'eager' if load['enforce_eager'] else 'compiled'}, "
            f"{load['max_num_seqs']} x {load['max_seq_length']}: "
            f"estimate {estimate.total_mib}, used {used:.0f} MiB ({ratio:.2f}); "
            f"weights {estimate.weights_mib}, KV {estimate.kv_cache_mib}; {record}"
        )
        if not 1 / ESTIMATE_FACTOR <= ratio <= ESTIMATE_FACTOR:
            wrong.append(f"{shape} is estimated at {ratio:.2f} of what it uses")
        if record.get("alive") or record.get("holders"):
            wrong.append(record["report"])
        if record["end"] > KEPT_SHARE * record["load"]:
            wrong.append(f"{shape} keeps {record['end']} of {record['load']} MiB")
    assert not wrong


@gpu
def test_interrupted_generation_leaves_a_working_engine():
    child = run_child("gpu_interrupt", **ON_GPU)
    assert child["right"] == child["interrupted"] == 10


@gpu
def test_an_engine_compiles_where_ci_is_set(tmp_path):
    """torch makes an error of a warning there; only a cold compile meets it."""
    caches = {name: str(tmp_path / name) for name in COMPILE_CACHES}
    child = run_child("gpu_interrupt", CI="true", **ON_GPU, **caches)
    assert child["right"] == child["interrupted"] == 10
