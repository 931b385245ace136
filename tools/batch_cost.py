"""What `run_batch` costs beside the engine: time, and memory for many prompts.

    python -m tools.batch_cost time --prompts 2000
    python -m tools.batch_cost memory --prompts 1000000

`time` answers the same prompts with vLLM's own `LLM.chat` and with `run_batch` into a
file, in turns, and prints the ratio of the medians. `memory` goes through a batch from
file to file with an engine that answers at once, and prints the most memory that it had
resident.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from helpers.batch import BatchResult, run_batch
from helpers.internals.batch.collect import answer_into
from helpers.internals.batch.prompts import Prompt, PromptSource
from helpers.models import TINY_THINKER
from helpers.sampling import preset
from helpers.thinking import ThinkingResult

MIB = 2**20


def measure_time(
    model_name: str, prompts: int, max_tokens: int, repeats: int
) -> dict[str, Any]:
    """Return the seconds of `LLM.chat` and `run_batch`, and the ratio of their medians.

    "wall" are those of a clock, "cpu" those that this process worked, which other
    programs on the machine disturb less.
    """
    from helpers.loading import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name, max_seq_length=1024, load_in_4bit=False, fast_inference=True
    )
    questions = [f"What is {n} + {n + 8}?" for n in range(prompts)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = preset("thinking", seed=7, max_tokens=max_tokens)

    def bare() -> None:
        model.vllm_engine.chat(chats, params, use_tqdm=False)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "answers.jsonl"
            run_batch(model, questions, params, output=output, progress=False)

    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds = {clock: {"LLM.chat": [], "run_batch": []} for clock in clocks}
    for _ in range(repeats + 1):
        for name, run in (("LLM.chat", bare), ("run_batch", ours)):
            starts = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                seconds[clock][name].append(round(read() - starts[clock], 2))
    found: dict[str, Any] = {"seconds, the first to warm up": seconds}
    for clock, by_name in seconds.items():
        bare_s, ours_s = (statistics.median(s[1:]) for s in by_name.values())
        found[f"ratio, {clock}"] = round(ours_s / bare_s, 4)
    return found


def measure_memory(prompts: int, folder: Path) -> dict[str, Any]:
    """MiB resident at most while `prompts` tiny prompts go from file to file."""
    source, output = folder / "prompts.jsonl", folder / "answers.jsonl"
    with open(source, "w") as file:
        for number in range(prompts):
            file.write(f'{{"id": {number}, "prompt": "{number} + 1?"}}\n')
    process, most = psutil.Process(), 0

    class AtOnce:
        """Answers as a `Batch` does, but without an engine."""

        job, room = {"model": "none"}, 512

        def run(self, prompts: Iterator[Prompt]) -> Iterator[BatchResult]:
            nonlocal most
            for prompt in prompts:
                if prompt.index % 1000 == 0:
                    most = max(most, process.memory_info().rss)
                ends = ThinkingResult("", "1", 5, 3, "stop")
                about = {"index": prompt.index, "prompt": prompt.given, "id": prompt.id}
                yield BatchResult(**vars(ends), **about, prompt_tokens=9, tokens=9)

    start = time.perf_counter()
    answer_into(output, AtOnce(), PromptSource(source), retries=0, shown=False)
    most = max(most, process.memory_info().rss)
    with open(output) as file:
        in_order = all(json.loads(line)["id"] == n for n, line in enumerate(file))
    return {
        "prompts": prompts,
        "in order": in_order,
        "MiB at most": most // MIB,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.what == "time":
        found = measure_time(args.model, args.prompts, args.max_tokens, args.repeats)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_memory(args.prompts, Path(folder))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
