"""What only a GPU can show: notebooks, memory, estimates, and the stop button.

`make gpu-test` runs these on a machine whose GPU nothing else uses. Memory is read by
NVML, for the kernels from outside their processes. The models have published shapes
and random weights; on a GPU that is too small for them they have fewer layers. The
executed notebooks are kept in _build/gpu.
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
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from helpers.devices import list_gpus
from helpers.memory import measure_gpu_memory
from helpers.models import estimate_memory, get_model
from helpers.release import TOLERANCE_MIB
from tools.random_model import make_random_model

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "_build" / "gpu"
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
IMPORTS = """
from helpers.settings import load_settings
load_settings().apply()
from helpers.loading import FastLanguageModel
import torch
from vllm import LLM, SamplingParams
from helpers.kernel import shutdown_kernel
from helpers.tiny_thinker import MODEL_DIR
torch.zeros(1, device="cuda")
"""
GENERATE = "outputs = {}('What is 2 + 2?', SamplingParams(max_tokens=8))"
# Fixed room for the KV cache: engines that load at once can't profile the memory.
ENGINES = {
    "in the kernel": (
        "0",
        "model, _ = FastLanguageModel.from_pretrained('tiny-thinker', fast_inference="
        "True, load_in_4bit=False, enforce_eager=True, gpu_memory_utilization=0.02)\n"
        + GENERATE.format("model.fast_generate"),
    ),
    "in a child": (
        "1",
        "engine = LLM(str(MODEL_DIR), enforce_eager=True, max_model_len=2048, "
        "gpu_memory_utilization=0.02, kv_cache_memory_bytes=2**30)\n"
        + GENERATE.format("engine.generate"),
    ),
}
PROBE = r"""
import gc, json, sys, weakref
from helpers.memory import cleanup_memory, measure_gpu_memory
from helpers.release import release_model

start = measure_gpu_memory()
from helpers.loading import FastLanguageModel
import torch
from vllm import SamplingParams

torch.zeros(1, device="cuda")
context = measure_gpu_memory() - start
prompts = [{"prompt_token_ids": list(range(300, 364))}] * 8
sampling = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
for load in json.loads(sys.argv[1]):
    before = measure_gpu_memory()
    model, tokenizer = FastLanguageModel.from_pretrained(fast_inference=True, **load)
    record = {"context": context, "load": measure_gpu_memory() - before}
    model.fast_generate(prompts, sampling)
    record["generate"] = measure_gpu_memory() - before
    cache = model.vllm_engine.llm_engine.vllm_config.cache_config
    record["pool_tokens"] = cache.num_gpu_blocks * cache.block_size
    engine = weakref.ref(model.vllm_engine)
    del model, tokenizer, cache
    record["del"] = measure_gpu_memory() - before
    cleanup_memory()
    record["cleanup"] = measure_gpu_memory() - before
    record["outlives del"] = engine() is not None
    if record["outlives del"]:
        report = release_model(engine(), before_load_mib=before, namespace=globals())
        record["alive"], record["holders"] = report.alive_parameters, report.holders
        record["report"] = str(report)
    record["end"] = measure_gpu_memory() - before
    print("RECORD", json.dumps(record), flush=True)
"""
INTERRUPT = r"""
import json, os, signal, threading
from helpers.loading import FastLanguageModel
from vllm import SamplingParams

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", fast_inference=True, load_in_4bit=False, gpu_memory_utilization=0.1
)
questions = ["What is 15 + 27?", "What is a token?", "Which is larger, 41 or 14?"]
prompts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=False, add_generation_prompt=True,
    )
    for question in questions
]
short = SamplingParams(temperature=0, max_tokens=100)
endless = SamplingParams(temperature=1, max_tokens=1800, ignore_eos=True)

def answers():
    return [output.outputs[0].text for output in model.fast_generate(prompts, short)]

expected = answers()
assert "42" in expected[0], expected
right = 0
for attempt in range(10):
    timer = threading.Timer(
        0.3 + 0.05 * attempt, os.kill, (os.getpid(), signal.SIGINT)
    )
    timer.start()
    try:
        model.fast_generate(prompts * 40, endless)
    except KeyboardInterrupt:
        right += answers() == expected
    timer.join()
print("RECORD", json.dumps(right))
"""


def run_child(code: str, *arguments: str) -> list[Any]:
    """What a script prints after RECORD."""
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1_500,
    )
    assert child.returncode == 0, child.stdout[-5_000:]
    lines = child.stdout.splitlines()
    return [json.loads(line[7:]) for line in lines if line.startswith("RECORD ")]


def settled(limit: int) -> int:
    """MiB in use, once they are at most `limit` or the driver had its time."""
    deadline = time.monotonic() + GONE_SECONDS
    while (used := measure_gpu_memory()) > limit and time.monotonic() < deadline:
        time.sleep(0.2)
    return used


def run_cell(client: BlockingKernelClient, code: str) -> None:
    reply = client.execute_interactive(
        code, timeout=CELL_SECONDS, output_hook=lambda message: None
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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["tiny-thinker", "qwen3-4b"])
def test_notebook_runs_and_gives_the_memory_back(model, notebook, models):
    folder = EXECUTED / model / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    helpers = folder.parent / "helpers"  # "Take it with you" has a relative path.
    helpers.unlink(missing_ok=True)
    helpers.symlink_to(ROOT / "helpers", target_is_directory=True)
    name = str(models[model]) if model in models else model
    start = measure_gpu_memory()
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite"]
    command += [f"--nbmake-timeout={NOTEBOOK_SECONDS}", shutil.copy(notebook, folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "MODEL_NAME": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8_000:]
    assert settled(start + TOLERANCE_MIB) <= start + TOLERANCE_MIB


@pytest.mark.parametrize("place", ENGINES)
def test_shutdown_gives_the_memory_back(place, monkeypatch):
    in_child, load = ENGINES[place]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", in_child)
    start = measure_gpu_memory()
    with ThreadPoolExecutor(KERNELS) as pool:
        kernels = list(pool.map(lambda _: start_new_kernel(), range(KERNELS)))
        try:
            clients = [client for _, client in kernels]
            list(pool.map(lambda client: run_cell(client, IMPORTS), clients))
            at_once = KERNELS if in_child == "1" else 1
            with ThreadPoolExecutor(at_once) as loading:
                list(loading.map(lambda client: run_cell(client, load), clients))
            loaded = measure_gpu_memory()
            share = (loaded - start) / KERNELS
            assert share > 500
            left = []
            for number, client in enumerate(clients, start=1):
                run_cell(client, "shutdown_kernel()")
                expected = loaded - number * share
                left.append(round(settled(expected + TOLERANCE_MIB) - expected))
        finally:
            for manager, client in kernels:
                client.stop_channels()
                manager.shutdown_kernel(now=True)
    print(f"engine {place}: {share:.0f} MiB each, MiB left after each: {left}")
    assert max(left) <= TOLERANCE_MIB


def _estimate(shape: str, path: Path, load: dict[str, Any]) -> Any:
    layers = json.loads((path / "config.json").read_text())["num_hidden_layers"]
    spec = SHAPES[shape]
    fixed = spec.embedding_parameters
    per_layer = (spec.parameters - fixed) / spec.layers
    # Quantised while loading: no layer is kept in 16-bit.
    spec = replace(
        spec,
        layers=layers,
        parameters=round(fixed + per_layer * layers),
        kept_16bit_parameters=0,
    )
    return estimate_memory(
        spec, load["max_seq_length"], load["max_num_seqs"], load["load_in_4bit"]
    )


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
    records = run_child(PROBE, json.dumps(loads))
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
        if not 0.9 <= ratio <= 1.1:
            wrong.append(f"{shape} is estimated at {ratio:.2f} of what it uses")
        if record.get("alive") or record.get("holders"):
            wrong.append(record["report"])
        if record["end"] > KEPT_SHARE * record["load"]:
            wrong.append(f"{shape} keeps {record['end']} of {record['load']} MiB")
    assert not wrong


def test_interrupted_generation_leaves_a_working_engine():
    assert run_child(INTERRUPT) == [10]
