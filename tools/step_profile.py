"""Say where the time of a decode step goes, by torch's profiler around the engine.

    python -m tools.step_profile --model DIRECTORY --out notebooks/figures/steps.json
    python -m tools.step_profile --again notebooks/figures/steps.json

For each batch size the file has the milliseconds of one step of decoding, split into
`PARTS`, and the share of the whole generation that reading the prompts took. A GPU's
kernels are told apart by their names; all names are kept, so that `--again` splits a
recorded file by the patterns of today. On a CPU the operators are taken instead.
`--options` are arguments of `vllm.LLM` as JSON, such as {"enforce_eager": true}.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device
from helpers.models import TINY_THINKER

from .compare_engines_child import alike
from .engines import load_in_process
from .measuring import describe_machine, describe_model, write_json

GAPS = "gaps"  # Nothing runs: on a GPU it waits, on a CPU Python works.
OTHER = "other"
# The first pattern that is found in a kernel's name decides.
PARTS = {
    "norms, rope, activation, cache write": (
        r"reshape_and_cache|kv_cache_update|^triton_(poi|red|per)|norm|rotary|rope|silu|act_and_mul|"
        r"fp8_quant|embedding"
    ),
    "attention": r"flash|fmha|attention|attn|varlen|scheduler_metadata",
    "sampling": r"arg_?max|top_?k|top_?p|sampl|gumbel|multinomial|soft_?max|random",
    "matrices": (
        r"gemm|gemv|nvjet|cutlass|cublas|splitk|marlin|machete|onednn|linear|"
        r"::(add)?mm\b|matmul|triton_tem|dequant"
    ),
    "copies and small operators": (
        r"^aten::|memcpy|memset|copy|fill|index|scatter|gather|elementwise|slot_mapping|"
        r"block_table|prepare|update|concat|cat_?array|arange|cumsum|reduce_kernel"
    ),
}
MOST_KERNELS = 60  # By time; the rest is far below a thousandth of a step.


@dataclass(frozen=True)
class Job:
    """`batch_sizes` prompts of `prompt_tokens` each, and as many new tokens.

    `steps` of decoding are profiled, after the first `skipped`.
    """

    batch_sizes: tuple[int, ...] = (1, 64, 256)
    prompt_tokens: int = 64
    max_tokens: int = 128
    skipped: int = 24
    steps: int = 32


def part_of(kernel: str) -> str:
    """Name the part of a step that a kernel or operator belongs to."""
    found = (
        part
        for part, pattern in PARTS.items()
        if re.search(pattern, kernel, re.IGNORECASE)
    )
    return next(found, OTHER)


def split(kernels: Mapping[str, float], step_ms: float) -> dict[str, float]:
    """Sum the milliseconds of each part; what is left of the step are gaps."""
    parts = Counter(dict.fromkeys(PARTS, 0.0))
    for name, milliseconds in kernels.items():
        parts[part_of(name)] += milliseconds
    parts[GAPS] = max(0.0, step_ms - sum(kernels.values()))
    return {part: round(value, 4) for part, value in parts.items()}


def run_steps(
    engine: Any, prompts: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[float, bool]]:
    """Generate; after each step yield the seconds so far, and if all have a token."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    for number, ids in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": list(ids)}, params)
    begun: set[str] = set()
    start = time.perf_counter()
    while engine.has_unfinished_requests():
        begun |= {output.request_id for output in engine.step()}
        yield time.perf_counter() - start, len(begun) == len(prompts)


def measure(engine: Any, job: Job, size: int, device: str) -> dict[str, Any]:
    """Return what the file holds of one batch size; times are milliseconds."""
    prompts = alike(size, job.prompt_tokens)
    for _ in run_steps(engine, prompts, job.max_tokens):
        pass  # A warm-up.
    times = list(run_steps(engine, prompts, job.max_tokens))
    decoding = [seconds for seconds, begun in times if begun]
    window = decoding[job.skipped : job.skipped + job.steps + 1]
    step = statistics.median(
        after - before for before, after in zip(window, window[1:], strict=False)
    )
    step_ms = 1000 * step
    kernels, profiled_ms = profile(engine, prompts, job, device)
    if device == "cpu":  # There the profiler's own time is in every operator's.
        step_ms = profiled_ms
    parts = split(kernels, step_ms)
    return {
        "step_ms": round(max(step_ms, sum(kernels.values())), 4),
        "parts_ms": parts,
        "named": round(1 - parts.get(OTHER, 0) / step_ms, 4),
        "prefill_share": prefill_share(times, step),
        "kernels_ms": kernels,
    }


def prefill_share(times: Sequence[tuple[float, bool]], step: float) -> float:
    """Return the share of a run until all had begun, less the one `step` of decoding.

    `times` are those of `run_steps`, in seconds. Where a step took unusually long, it
    may have hidden all of the reading: 0.
    """
    first = next(seconds for seconds, begun in times if begun)
    return round(max(0.0, first - step) / times[-1][0], 4)


def profile(
    engine: Any, prompts: Sequence[Sequence[int]], job: Job, device: str
) -> tuple[dict[str, float], float]:
    """Return milliseconds of a step by kernel, and of the whole step as profiled."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    recording = profiler(activities=activities, acc_events=True)
    decoding, begun_at = 0, 0.0
    seconds = 0.0
    for _, begun in run_steps(engine, prompts, job.max_tokens):
        decoding += begun
        if decoding == job.skipped and not begun_at:
            recording.start()
            begun_at = time.perf_counter()
        if decoding == job.skipped + job.steps and not seconds:
            seconds = time.perf_counter() - begun_at
            recording.stop()
    if not seconds:
        raise ValueError(f"fewer than {job.skipped + job.steps} steps of decoding")
    totals: Counter[str] = Counter()
    for name, microseconds in _events(recording, device):
        totals[name] += microseconds
    by_time = totals.most_common(MOST_KERNELS)
    kernels = {name[:200]: round(us / 1000 / job.steps, 5) for name, us in by_time}
    return kernels, 1000 * seconds / job.steps


def _events(recording: Any, device: str) -> Iterator[tuple[str, float]]:
    """Yield the name and the microseconds of each kernel, or of each operator alone."""
    from torch.autograd import DeviceType

    for event in recording.events():
        if getattr(event, "is_user_annotation", False):
            continue
        on_gpu = event.device_type == DeviceType.CUDA
        if on_gpu and device == "cuda":
            yield event.name, event.time_range.elapsed_us()
        elif not on_gpu and device == "cpu" and "::" in event.name:
            yield event.name, event.self_cpu_time_total


def record(model: str, job: Job, out: Path, options: dict[str, Any]) -> None:
    """Load the model and measure each batch size; the file is written after each."""
    length = -(-(job.prompt_tokens + job.max_tokens + 1) // 256) * 256
    engine = load_in_process(
        model, max(job.batch_sizes), **{"max_model_len": length} | options
    ).llm_engine
    found = {**describe_machine(), "model": describe_model(model)}
    found["job"] = {"prompt_tokens": job.prompt_tokens, "max_tokens": job.max_tokens}
    found |= {"options": options, "steps": {}}
    for size in job.batch_sizes:
        found["steps"][str(size)] = measure(engine, job, size, detect_device())
        write_json(out, found)


def split_again(path: Path) -> None:
    """Split what a file holds by the patterns of today."""
    found = json.loads(path.read_text("utf-8"))
    for step in found["steps"].values():
        parts = split(step["kernels_ms"], step["step_ms"])
        step["parts_ms"] = parts
        step["named"] = round(1 - parts.get(OTHER, 0) / step["step_ms"], 4)
    write_json(path, found)


def show(found: dict[str, Any]) -> None:
    for size, step in found["steps"].items():
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in step["parts_ms"].items())
        print(f"batch {size}: {step['step_ms']:.2f} ms: {parts}; ", end="")
        print(f"named {step['named']:.1%}, prefill {step['prefill_share']:.1%}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if less than 95 % of a step has a name."""
    parser = argparse.ArgumentParser("python -m tools.step_profile")
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--out", type=Path, default=Path("_build/steps.json"))
    parser.add_argument("--again", type=Path, metavar="FILE", help="measure nothing")
    parser.add_argument("--batch-sizes", default="1,64,256")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args(arguments)
    out = options.again or options.out
    if options.again:
        split_again(out)
    else:
        sizes = tuple(int(size) for size in options.batch_sizes.split(","))
        record(options.model, Job(batch_sizes=sizes), out, options.options)
    found = json.loads(out.read_text("utf-8"))
    show(found)
    return int(any(step["named"] < 0.95 for step in found["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
