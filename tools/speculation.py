"""Measure what speculation gains, by how many tokens of a step are accepted.

    python -m tools.speculation --model DIRECTORY --out FILE.json

Bare vLLM proposes `--drafted` tokens in every step, by n-grams or by the model that
`--draft` names (a head with `--method eagle3`), and checks them in one pass. The
n-grams are looked up on the GPU, where one is, unless `--method ngram` asks for the
processor. On a GPU the acceptance is set: vLLM's "synthetic" rejection accepts as many
as it is told, so that random weights show the speed of every acceptance. On a CPU,
which lacks it, the acceptance is what the model makes of the drafts. `--options` are
arguments of `vllm.LLM` for both engines, as JSON. The file is written after each
measurement, and has the limit that reading memory sets to the plain engine, which is
measured first, in a process of its own.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device, resolve_model_path
from helpers.models import TINY_THINKER

from .compare_engines_child import limits
from .engines import Job, load_in_process
from .measuring import describe_machine, describe_model, measure_bandwidth, write_json

FILLER = 300  # A token of ordinary text in every tokenizer here.
BATCH_SIZES = (1, 8, 64, 256)
PROMPT_TOKENS, MAX_TOKENS = 64, 128
LOOKUP = {"prompt_lookup_min": 1, "prompt_lookup_max": 3}


def load_engine(options: argparse.Namespace, speculate: bool, device: str) -> Any:
    arguments: dict[str, Any] = {"max_model_len": 512, "disable_log_stats": False}
    if speculate:
        synthetic = {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_length": 1.0,
        }
        chosen = speculation(options) | (synthetic if device == "cuda" else {})
        if options.draft:
            chosen["model"] = str(Path(resolve_model_path(options.draft)).resolve())
        arguments["speculative_config"] = chosen
    most = max(options.batch_sizes)
    engine = load_in_process(options.model, most, **arguments | options.options)
    if speculate and not options.draft:
        engine.collective_rpc(fill_up_drafts)
    return engine


def speculation(options: argparse.Namespace) -> dict[str, Any]:
    """Return how tokens are proposed, as the file records it."""
    drafted = {"num_speculative_tokens": options.drafted}
    if options.draft:
        method = {"method": options.method or "draft_model"}
        return method | drafted | {"model": Path(options.draft).name}
    method = "ngram_gpu" if detect_device() == "cuda" else "ngram"
    return {"method": options.method or method, **drafted, **LOOKUP}


def fill_up_drafts(worker: Any) -> None:
    """Let the worker propose as many tokens as it may, whatever it looks up.

    Random weights write what was never there before, so a lookup finds too little for
    the speed of a step that checks drafts. The lookup takes its time all the same.
    """
    drafter = worker.model_runner.drafter
    look_up = drafter.propose

    def propose(drafted: int, sampled: Any, *rest: Any, **more: Any) -> Any:
        found = look_up(drafted, sampled, *rest, **more)
        if isinstance(found, tuple):  # looked up on the GPU: tokens, how many are valid
            tokens, valid = found
            return tokens.masked_fill(tokens < 0, FILLER), valid.fill_(drafted)
        pairs = zip(found, sampled, strict=True)
        return [(d + [FILLER] * drafted)[:drafted] if new else d for d, new in pairs]

    drafter.propose = propose


def set_acceptance(worker: Any, length: float) -> None:
    """Let the worker accept drafts so that a step has `length` tokens on average.

    Runs in the engine, by `collective_rpc`: whole drafts up to the length, and the one
    after them with the probability that is left, as vLLM itself shares it out.
    """
    rates = worker.model_runner.rejection_sampler.synthetic_conditional_rates
    chances = [min(1.0, max(0.0, length - 1 - place)) for place in range(len(rates))]
    rates.copy_(rates.new_tensor(chances))


def count_drafts(engine: Any) -> dict[str, float]:
    """Return how many drafts, drafted and accepted tokens the engine has counted."""
    names = {
        f"vllm:spec_decode_num_{name}": name
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    }
    found = {metric.name: metric for metric in engine.get_metrics()}
    return {short: getattr(found.get(n), "value", 0) for n, short in names.items()}


def measure(engine: Any, size: int, repeats: int) -> dict[str, Any]:
    """Return tokens per second, and what became of the drafts, for one batch size."""
    from vllm import SamplingParams

    # Few different ids, so that a lookup has something to find.
    numbers = random.Random(0)
    draw = partial(numbers.randrange, 300, 330)
    prompts = [
        {"prompt_token_ids": [draw() for _ in range(PROMPT_TOKENS)]}
        for _ in range(size)
    ]
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    seconds, before = [], {}
    for _ in range(repeats + 1):
        before = before or count_drafts(engine)
        start = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        assert all(len(one.outputs[0].token_ids) == MAX_TOKENS for one in outputs)
    after = count_drafts(engine)
    made = {name: after[name] - before[name] for name in after}
    record: dict[str, Any] = {
        "tokens_per_second": [size * MAX_TOKENS / one for one in seconds[1:]]
    }
    if made["drafts"]:
        record["drafts"] = made["drafts"]
        record["tokens_per_draft"] = 1 + made["accepted_tokens"] / made["drafts"]
    return record


def measure_engine(options: argparse.Namespace) -> None:
    """Measure the plain or the speculating engine, in this process."""
    device, sizes = detect_device(), options.batch_sizes
    speculate = options.engine == "speculating"
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    if not speculate:  # What reading alone allows without drafts.
        job = Job("vllm", options.model, sizes, PROMPT_TOKENS, MAX_TOKENS)
        found["limit"] = limits(job, device, measure_bandwidth(device))
    engine = load_engine(options, speculate, device)
    lengths = [0.0]
    if speculate and device == "cuda":  # Tokens of a step: the accepted and one more.
        lengths = [float(length) for length in range(1, options.drafted + 2)]
    for length in lengths:
        name = f"{length:g}" if length else "real" if speculate else "none"
        if length:
            engine.collective_rpc(set_acceptance, args=(length,))
        cells = found.setdefault("acceptance", {}).setdefault(name, {})
        for size in sizes:
            cells[str(size)] = measure(engine, size, options.repeats)
            write_json(options.out, found)
    os._exit(0)  # Its threads may take long to end.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if an engine failed."""
    parser = argparse.ArgumentParser("python -m tools.speculation")
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--out", type=Path, default=Path("_build/speculation.json"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batch-sizes",
        type=lambda text: tuple(map(int, text.split(","))),
        default=BATCH_SIZES,
    )
    parser.add_argument("--draft", help="a model of the same vocabulary, or a head")
    parser.add_argument("--drafted", type=int, default=4, help="tokens of a step")
    parser.add_argument("--method", help="of the drafts, as vLLM names it")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--engine", choices=("plain", "speculating"))
    options = parser.parse_args(arguments)
    if options.engine:
        measure_engine(options)
    found = {
        **describe_machine(),
        "model": describe_model(options.model),
        "job": {"prompt_tokens": PROMPT_TOKENS, "max_tokens": MAX_TOKENS},
        "speculation": speculation(options),
        "options": options.options,
    }
    write_json(options.out, found)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = [sys.executable, "-m", "tools.speculation", *given, "--engine"]
    statuses = [
        subprocess.run([*command, engine]).returncode
        for engine in ("plain", "speculating")
    ]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
