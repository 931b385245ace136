"""Measure one row of the comparison: the child process of `tools.compare_engines`.

    python -m tools.compare_engines_child JOB RECORD

JOB is a `Job` as JSON. RECORD is a JSON file that is written again after each
measurement, so that a run which is cut off keeps what it has.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device, resolve_model_path
from helpers.internals.machine.devices import measure_memory
from helpers.internals.machine.settings import load_settings
from helpers.speed import measure_engine

from .engines import ROWS, Generate, Job, engine_settings, load
from .measuring import describe_machine, measure_bandwidth


def alike(count: int, length: int) -> list[list[int]]:
    """Make different prompts, of ids that are ordinary text in every tokenizer here."""
    numbers = random.Random(0)
    return [[numbers.randrange(300, 1000) for _ in range(length)] for _ in range(count)]


def mixed(job: Job, count: int) -> tuple[list[list[int]], list[int]]:
    """Make prompts of different lengths, and the lengths of their answers.

    Both are the same in each call. Lengths are spread evenly over their logarithm: as
    many between 64 and 128 tokens as between 512 and 1,024.
    """
    numbers = random.Random(count)

    def lengths(bounds: tuple[int, int]) -> list[int]:
        low, high = map(math.log, bounds)
        return [round(math.exp(numbers.uniform(low, high))) for _ in range(count)]

    ids = alike(count, job.mixed_prompt[1])
    prompts = [row[:n] for row, n in zip(ids, lengths(job.mixed_prompt), strict=True)]
    return prompts, lengths(job.mixed_answer)


def measure_mixed(generate: Generate, job: Job, count: int) -> list[float]:
    """Return the tokens per second that were asked for, one value per repeat."""
    prompts, lengths = mixed(job, count)
    generate(prompts, [1] * count)  # A warm-up for the prompts' shapes.
    seconds: list[float] = []
    while len(seconds) < job.repeats and sum(seconds) < job.enough_seconds:
        start = time.perf_counter()
        completions = generate(prompts, lengths)
        seconds.append(time.perf_counter() - start)
        assert [len(token_ids) for token_ids in completions] == lengths
    return [sum(lengths) / s for s in seconds]


def limits(job: Job, device: str, bandwidth: float) -> dict[int, float]:
    """Compute tokens per second by batch size if reading memory took all the time.

    Weights and KV cache are what is read. The input embedding is looked up and not
    read whole, unless it is the output layer too. Only weights within the layers are
    quantised.
    """
    directory = Path(resolve_model_path(job.model))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    row, width = ROWS[job.row], 2 if device == "cuda" else 4
    stored = 4 if config["dtype"] == "float32" else 2
    files = directory.glob("*.safetensors")
    parameters = sum(file.stat().st_size for file in files) / stored
    embedding = config["vocab_size"] * config["hidden_size"]
    if not config["tie_word_embeddings"]:
        parameters -= embedding
    layer_width = row.bytes_per_weight or width
    weights = (parameters - embedding) * layer_width + embedding * width
    kv_bytes = 2 * config["num_hidden_layers"] * config["head_dim"]
    kv_bytes *= config["num_key_value_heads"]
    kv_bytes *= 1 if "FP8 cache" in row.precision else width
    context = job.prompt_tokens + job.max_tokens / 2
    bandwidth *= row.gpus
    if row.engine == "vllm-each":  # Each reads all weights.
        weights *= row.gpus
    return {
        size: size * bandwidth / (weights + size * context * kv_bytes)
        for size in job.batch_sizes
    }


def measure(job: Job, keep: Callable[..., None]) -> None:
    """Load the row and measure it; `keep` gets each figure as soon as it is there."""
    row, device = ROWS[job.row], detect_device()
    if (
        row.engine.startswith("vllm") and device == "cuda"
    ):  # As it comes: in a process beside.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    load_settings().apply()
    if row.engine.startswith("unsloth"):
        from helpers.loading import FastLanguageModel  # noqa: F401
    if row.on_vllm:
        import vllm  # noqa: F401
    bandwidth = measure_bandwidth(device)
    keep(machine=describe_machine(), bandwidth=bandwidth)
    before, start = measure_memory(), time.perf_counter()
    model, generate = load(job, device)
    keep(load_seconds=time.perf_counter() - start)
    keep(memory_mib=measure_memory() - before, limit=limits(job, device, bandwidth))
    if row.on_vllm or row.engine == "transformers-batch":
        keep(settings=engine_settings(model))
    prompts = alike(max(job.batch_sizes, default=0), job.prompt_tokens)
    speeds, first = {}, {}
    for size in job.batch_sizes:
        figures = measure_engine(
            row.title,
            lambda batch, n: generate(batch, [n] * len(batch)),
            prompts,
            device=device,
            batch_sizes=(size,),
            max_tokens=job.max_tokens,
            repeats=job.repeats,
        )
        speeds |= figures.tokens_per_second
        first |= figures.ttft_seconds
        keep(tokens_per_second=speeds, ttft_seconds=first)
    different: dict[int, list[float]] = {}
    for count in job.mixed:
        tokens = sum(mixed(job, count)[1])
        slowest = min(map(min, different.values()), default=math.inf)
        if tokens / slowest > 2 * job.enough_seconds:
            continue
        different[count] = measure_mixed(generate, job, count)
        keep(mixed=different)


def main() -> None:
    values = json.loads(sys.argv[1])
    job = Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    path, record = Path(sys.argv[2]), {}

    def keep(**measured: Any) -> None:
        record.update(measured)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(path)

    measure(job, keep)
    os._exit(0)  # Engines' threads and children may take long to end.


if __name__ == "__main__":
    main()
