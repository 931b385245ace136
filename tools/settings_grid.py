"""Time jobs of five mixes of lengths under a grid of settings, for 13 to predict.

    python -m tools.settings_grid --model DIRECTORY --out FILE.json

Bare vLLM does every job of `MIXES` with each number of slots and each budget of tokens
for a step, in a cache of `CACHE_TOKENS`. First it does the jobs of `FIT`, from which
the prediction takes its constants: none of them is a job of the grid. All jobs are done
once, then the short ones up to twice more, so that neither cold code nor a disturbance
meets all repeats of one; the fastest counts. The file has lengths, limits and seconds,
and grows with each measurement. `--shrink` divides all lengths, for a machine without a
GPU.
"""

import argparse
import itertools
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device
from helpers.models import TINY_THINKER
from helpers.schedule import watch_schedule

from .compare_engines_child import alike
from .engines import generate_with_vllm, load_in_process
from .measuring import describe_machine, describe_model, write_json

Lengths = tuple[int, int]  # The shortest and the longest, in tokens.
# Prompts, answers: lengths between these bounds, spread evenly over their logarithm.
MIXES: dict[str, tuple[Lengths, Lengths]] = {
    "questions": ((16, 128), (128, 512)),
    "documents": ((512, 2048), (16, 128)),
    "stories": ((16, 64), (512, 1024)),
    "labels": ((128, 1024), (1, 4)),
    "everything": ((16, 2048), (16, 1024)),
}
# Requests, length of the prompts, length of the answers: one, many, and mostly reading.
FIT = ((1, 64, 256), (64, 64, 256), (16, 1024, 32))
CACHE_TOKENS = 40_960  # As on a card with 12 GB.
LIMITS = ("slots", "budget", "blocks", "block_size")
SLOTS = (32, 64, 256)
BUDGETS = (512, 2048, 8192)
ROUNDS, ENOUGH_SECONDS = 3, 6.0  # No repeat begins once they took that long in all.


def lengths(count: int, shrink: int) -> dict[str, tuple[list[int], list[int]]]:
    """Return prompt and answer lengths of each mix, the same in each call."""
    numbers = random.Random(0)

    def draw(bounds: Lengths) -> list[int]:
        low, high = map(math.log, bounds)
        drawn = [math.exp(numbers.uniform(low, high)) for _ in range(count)]
        return [max(1, round(length / shrink)) for length in drawn]

    return {name: (draw(p), draw(a)) for name, (p, a) in MIXES.items()}


def load_engine(model: str, shrink: int) -> Any:
    block_size = 16 if detect_device() == "cuda" else 32
    return load_in_process(
        model,
        max(SLOTS),
        max_model_len=4096 // shrink,
        max_num_batched_tokens=max(BUDGETS) // shrink,
        enable_chunked_prefill=True,
        block_size=block_size,
        num_gpu_blocks_override=CACHE_TOKENS // shrink // block_size + 1,
    )


def run(
    engine: Any, prompts: Sequence[int], answers: Sequence[int], slots: int, budget: int
) -> dict[str, Any]:
    """Do a job of these lengths; return its limits, its steps and its seconds."""
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    scheduler.max_num_scheduled_tokens = budget
    ids = alike(len(prompts), max(prompts))
    inputs = [row[:n] for row, n in zip(ids, prompts, strict=True)]
    with watch_schedule(engine, slots) as schedule:
        start = time.perf_counter()
        generate_with_vllm(engine.generate, None, inputs, answers)
        seconds = time.perf_counter() - start
    limits = {name: getattr(schedule, name) for name in LIMITS}
    return {**limits, "steps": len(schedule.steps), "seconds": [seconds]}


def record(options: argparse.Namespace) -> None:
    """Measure `FIT` and the grid; write the file after each job."""
    engine = load_engine(options.model, options.shrink)
    found = {**describe_machine(), "model": describe_model(options.model)}
    found |= {"fit": [], "mixes": {}}
    planned: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
    budgets = [budget // options.shrink for budget in BUDGETS]
    for count, *both in FIT:
        prompt, answer = (max(1, length // options.shrink) for length in both)
        job = {"prompts": [prompt] * count, "answers": [answer] * count}
        found["fit"].append(job)
        planned.append((job, (*job.values(), count, budgets[-1])))
    for name, mix in lengths(options.requests, options.shrink).items():
        jobs: list[dict[str, Any]] = []
        found["mixes"][name] = {"prompts": mix[0], "answers": mix[1], "jobs": jobs}
        for limits in itertools.product(SLOTS, budgets):
            jobs.append({})
            planned.append((jobs[-1], (*mix, *limits)))
    for job, arguments in planned * ROUNDS:
        before = job.get("seconds", [])
        if sum(before) < ENOUGH_SECONDS:
            job |= run(engine, *arguments)
            job["seconds"] = before + job["seconds"]
            print(arguments[2:], job["seconds"], flush=True)
            write_json(options.out, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m tools.settings_grid")
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--out", type=Path, default=Path("_build/settings.json"))
    parser.add_argument("--requests", type=int, default=96, help="of each mix")
    parser.add_argument("--shrink", type=int, default=1, help="divides all lengths")
    options = parser.parse_args(arguments)
    record(options)
    os._exit(0)  # Its threads may take long to end.


if __name__ == "__main__":
    sys.exit(main())
