"""Measure what a server holds, beside what the times of its steps foretell.

    python -m tools.load_curve --model DIRECTORY --out notebooks/figures/serving.json

The steps of the engine alone are timed first, in a process of its own, so that its
memory is free for the server. Then the way: requests of one token, which is all that
travels but the tokens themselves. Both together are the prediction. Then clients ask,
wait for their whole answer and ask again. The file is written after each number of
clients, with the prediction beside the measurement.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.serving import Server, serve

from .measuring import describe_machine, describe_model, write_json

CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
ANSWER, REPEATS = 128, 3  # tokens of an answer; the fastest of the repeats counts


def make_prompt(number: int) -> str:
    """Return a prompt that begins like no other, so that no cache has any of it."""
    return f"{number} Tell a story of {number} cats and {number + 1} dogs."


def predict(n: int, first: float, step: float, answer: int = ANSWER) -> float:
    """Return tokens per second of `n` clients in rounds of an answer each.

    `first` are the seconds until all have their first token, `step` those of each
    further token for all.
    """
    return n * answer / (first + (answer - 1) * step)


def find_knee(rates: Mapping[int, float]) -> float:
    """Return the number of clients at which what they share takes half of the time.

    `rates` are tokens per second by the number of clients. The seconds of a token for
    everybody are fitted by a line a + b n; the knee is at a / b.
    """
    import numpy as np

    clients = np.array([*rates])
    seconds = clients / np.array([*rates.values()])
    b, a = np.polyfit(clients, seconds, 1, w=1 / seconds)
    return float(a / b)


def time_steps(model: str, clients: Sequence[int], answer: int) -> dict[str, Any]:
    """Return the seconds of a step by number of clients, and the tokens of a prompt."""
    from helpers.loading import FastLanguageModel

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        model, max_seq_length=1024, load_in_4bit=False, fast_inference=True
    )
    from vllm import SamplingParams

    numbers = iter(range(10**9))

    def seconds(n: int, tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        prompts = [make_prompt(next(numbers)) for _ in range(n)]
        start = time.perf_counter()
        loaded.fast_generate(prompts, sampling_params=params)
        return time.perf_counter() - start

    seconds(max(clients), 8)  # A warm-up.
    found = {}
    for n in clients:
        writing = min(seconds(n, answer) for _ in range(REPEATS))
        writing -= min(seconds(n, 1) for _ in range(REPEATS))
        found[str(n)] = writing / (answer - 1)
    return {"prompt": len(tokenizer(make_prompt(10))["input_ids"]), "steps": found}


async def drive(server: Server, n: int, count: int, answer: int) -> float:
    """Return the seconds in which `n` clients get `count` answers in all."""
    from openai import AsyncOpenAI

    options = {"max_tokens": answer, "temperature": 0, "model": server.model}
    options |= {"extra_body": {"ignore_eos": True}}
    todo = iter(range(count))

    async def ask(client: AsyncOpenAI) -> None:
        for number in todo:
            await client.completions.create(prompt=make_prompt(number), **options)

    address = {"base_url": server.url, "api_key": server.key}
    async with AsyncOpenAI(**address, max_retries=0, timeout=600) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(n)))
        return time.perf_counter() - start


def measure(
    model: str, clients: Sequence[int], answer: int, out: Path
) -> dict[str, Any]:
    """Write and return the record: steps, predicted and measured tokens per second."""
    command = [sys.executable, "-m", "tools.load_curve", "--steps", "--model", model]
    command += ["--out", str(out), "--clients", *map(str, clients)]
    subprocess.run([*command, "--answer", str(answer)], check=True)
    record = {**describe_machine(), "model": describe_model(model), "answer": answer}
    record |= json.loads(out.read_text("utf-8"))
    with serve(model, max_model_len=1024, enable_prefix_caching=False) as server:

        def seconds(n: int, count: int, tokens: int) -> float:
            return asyncio.run(drive(server, n, count, tokens))

        seconds(max(clients), max(clients), answer)  # A warm-up.
        first = {n: min(seconds(n, n, 1) for _ in range(REPEATS)) for n in clients}
        steps = {n: record["steps"][str(n)] for n in clients}
        predicted = {n: predict(n, first[n], steps[n], answer) for n in clients}
        record |= {"first": first, "predicted": predicted, "measured": {}}
        record["predicted_knee"] = find_knee(predicted)
        for n in clients:
            count = max(4, REPEATS * n)
            record["measured"][n] = count * answer / seconds(n, count, answer)
            print(f"{n:>4}: {record['measured'][n]:,.0f} of {predicted[n]:,.0f}")
            write_json(out, record)
    record["measured_knee"] = find_knee(record["measured"])
    write_json(out, record)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.load_curve")
    parser.add_argument("--model", required=True, help="any name that loads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--answer", type=int, default=ANSWER, help="tokens")
    parser.add_argument("--steps", action="store_true", help="time the engine alone")
    options = parser.parse_args(arguments)
    os.environ["LOAD_IN_4BIT"] = "false"  # The server reads it, too.
    if options.steps:
        steps = time_steps(options.model, options.clients, options.answer)
        write_json(options.out, steps)
        return 0
    record = measure(options.model, options.clients, options.answer, options.out)
    knees = (record["predicted_knee"], record["measured_knee"])
    print("the knee: {:.0f} clients predicted, {:.0f} measured".format(*knees))
    return 0


if __name__ == "__main__":
    sys.exit(main())
