"""Measure one engine: the child process of `tools.compare_engines`.

    python -m tools.compare_engines_child JOB RECORD

JOB is a `Job` as JSON. RECORD is a JSON file that is written anew after each
measurement, so that a run which is cut off keeps what it has.
"""

import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from helpers.internals.engine.hub import resolve_model_path
from helpers.internals.engine.plan import detect_device
from helpers.internals.machine.devices import list_gpus
from helpers.internals.machine.settings import load_settings
from helpers.internals.machine.versions import find_version
from helpers.memory import measure_memory
from helpers.models import NF4_BYTES_PER_WEIGHT
from helpers.speed import measure_engine

PACKAGES = ("unsloth", "vllm", "torch", "transformers", "bitsandbytes")
TITLES = {
    "transformers": "transformers generate",
    "unsloth": "Unsloth generate",
    "unsloth-fast": "Unsloth fast_generate",
    "vllm": "vLLM, bare",
}
# A measurement that takes long is not repeated once it took this much in all.
ENOUGH_SECONDS = 60

# Takes prompts as token ids and how many new tokens each gets; returns the new ids.
Generate = Callable[[Sequence[Sequence[int]], Sequence[int]], list[Sequence[int]]]


@dataclass(frozen=True)
class Job:
    """What one child process measures.

    `precision` is "16-bit" or "4-bit"; on a CPU "16-bit" are the 32 bits that it
    computes in. `prompt_tokens` and `max_tokens` are those of each prompt where all are
    alike. `mixed` are the numbers of prompts of different lengths, `mixed_prompt` and
    `mixed_answer` their shortest and longest length in tokens. `generate` takes at most
    `at_once` of these prompts in one batch. `batch_tokens` are the new tokens of each
    prompt where `run_batch` is held against the engine; 0 leaves that out.
    """

    engine: str
    model: str
    precision: str = "16-bit"
    batch_sizes: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    prompt_tokens: int = 64
    max_tokens: int = 128
    mixed: tuple[int, ...] = (64, 256)
    mixed_prompt: tuple[int, int] = (16, 512)
    mixed_answer: tuple[int, int] = (64, 1024)
    at_once: int = 64
    batch_tokens: int = 512
    repeats: int = 3
    gpu_memory_utilization: float = 0.5

    @property
    def in_4bit(self) -> bool:
        return self.precision == "4-bit"

    @property
    def on_vllm(self) -> bool:
        return self.engine in ("unsloth-fast", "vllm")

    @property
    def max_length(self) -> int:
        """Room for the longest prompt and its completion, in whole blocks of 256."""
        alike = self.prompt_tokens + max(self.max_tokens, self.batch_tokens)
        longest = max(alike, self.mixed_prompt[1] + self.mixed_answer[1])
        return -(-(longest + 1) // 256) * 256


def alike(count: int, length: int) -> list[list[int]]:
    """Different prompts of ids that stand for ordinary text in every tokenizer here."""
    numbers = random.Random(0)
    return [[numbers.randrange(300, 1000) for _ in range(length)] for _ in range(count)]


def mixed(job: Job, count: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of different lengths, and the lengths of their answers; always the same.

    Lengths are spread evenly over their logarithm: as many between 64 and 128 tokens
    as between 512 and 1,024.
    """
    numbers = random.Random(count)

    def lengths(bounds: tuple[int, int]) -> list[int]:
        low, high = map(math.log, bounds)
        return [round(math.exp(numbers.uniform(low, high))) for _ in range(count)]

    ids = alike(count, job.mixed_prompt[1])
    prompts = [row[:n] for row, n in zip(ids, lengths(job.mixed_prompt), strict=True)]
    return prompts, lengths(job.mixed_answer)


def load_transformers(path: str, dtype: Any, device: str, in_4bit: bool) -> Any:
    """The model alone, quantised as Unsloth does it."""
    import transformers

    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    arguments = {"quantization_config": nf4} if in_4bit else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, device_map=device, **arguments
    )
    return model.eval()


def load(job: Job, device: str) -> tuple[Any, Generate]:
    """The model or engine, and the call that is measured."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    path = str(Path(resolve_model_path(job.model)).resolve())
    # Without a prefix cache, or repeats would not read their prompts again. Unsloth
    # takes 256 sequences for "not given", and then fewer on a card with less room.
    sequences = max(*job.batch_sizes, *job.mixed)
    on_vllm = {
        "enable_prefix_caching": False,
        "max_num_seqs": 257 if sequences == 256 else sequences,
        "gpu_memory_utilization": job.gpu_memory_utilization,
    }
    if job.engine == "vllm":
        from vllm import LLM

        if device == "cpu":  # As helpers.internals.engine.cpu does.
            del on_vllm["gpu_memory_utilization"]
            on_vllm["enforce_eager"] = True
        engine = LLM(
            path,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=job.max_length,
            quantization="bitsandbytes" if job.in_4bit else None,
            **on_vllm,
        )
        return engine, partial(generate_with_vllm, engine.generate)
    if job.engine == "transformers":
        model = load_transformers(path, dtype, device, job.in_4bit)
        return model, partial(generate_with_torch, model, job.at_once)
    from helpers.loading import FastLanguageModel

    fast = job.engine == "unsloth-fast"
    model, _ = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=job.max_length,
        dtype=dtype,
        load_in_4bit=job.in_4bit,
        **({"fast_inference": True, **on_vllm} if fast else {}),
    )
    if fast:
        return model, partial(generate_with_vllm, model.fast_generate)
    FastLanguageModel.for_inference(model)
    return model, partial(generate_with_torch, model, job.at_once)


def generate_with_vllm(
    generate: Callable[..., list[Any]],
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
) -> list[Sequence[int]]:
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in max_tokens
    ]
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = generate(inputs, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def generate_with_torch(
    model: Any,
    at_once: int,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
) -> list[list[int]]:
    """`generate` in batches of prompts: each goes on to the longest answer in it."""
    import torch

    if len(set(max_tokens)) == 1:  # Nobody waits for anybody.
        at_once = len(prompts)
    completions = []
    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        lengths = max_tokens[start : start + at_once]
        width = max(map(len, batch))
        padded = [[0] * (width - len(ids)) + list(ids) for ids in batch]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                min_new_tokens=max(lengths),
                max_new_tokens=max(lengths),
                do_sample=False,
                pad_token_id=model.config.pad_token_id or 0,
            )
        rows = output[:, width:].tolist()
        completions += [row[:n] for row, n in zip(rows, lengths, strict=True)]
    return completions


def measure_mixed(generate: Generate, job: Job, count: int) -> list[float]:
    """Tokens per second that were asked for, one value per repeat."""
    prompts, lengths = mixed(job, count)
    generate(prompts, [1] * count)  # A warm-up for the prompts' shapes.
    seconds: list[float] = []
    while len(seconds) < job.repeats and sum(seconds) < ENOUGH_SECONDS:
        start = time.perf_counter()
        completions = generate(prompts, lengths)
        seconds.append(time.perf_counter() - start)
        assert [len(token_ids) for token_ids in completions] == lengths
    return [sum(lengths) / s for s in seconds]


def measure_run_batch(model: Any, job: Job) -> list[float]:
    """What `run_batch` takes beside the engine, as a share of the engine's time.

    Templates, parsing and records of as many questions as the largest batch has, held
    against `fast_generate` on the same token ids; one value per repeat.
    """
    from vllm import SamplingParams

    from helpers.batch import run_batch

    questions = [f"What is {n} + {n + 7}?" for n in range(max(job.batch_sizes))]
    params = SamplingParams(temperature=0, max_tokens=job.batch_tokens, ignore_eos=True)
    tokenizer = model.vllm_engine.get_tokenizer()
    inputs = [
        {
            "prompt_token_ids": tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        }
        for question in questions
    ]
    shares = []
    for _ in range(job.repeats + 1):
        start = time.perf_counter()
        model.fast_generate(inputs, params, use_tqdm=False)
        bare = time.perf_counter()
        run_batch(model, questions, params, progress=False)
        shares.append((time.perf_counter() - bare) / (bare - start) - 1)
    return shares[1:]


def measure_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    import torch

    source = torch.ones(
        2**31 if device == "cuda" else 2**28, dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    size = 2 * source.numel()
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()
    return size / statistics.median(seconds[1:])


def limits(job: Job, device: str, bandwidth: float) -> dict[int, float]:
    """Tokens per second of a batch if reading weights and KV cache took all the time.

    The input embedding is looked up and not read whole, unless it is the output layer
    too. In 4-bit the weights within the layers are NF4 and the rest is as before.
    """
    directory = Path(resolve_model_path(job.model))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    width = 2 if device == "cuda" else 4
    stored = 4 if config["dtype"] == "float32" else 2
    files = directory.glob("*.safetensors")
    parameters = sum(file.stat().st_size for file in files) / stored
    embedding = config["vocab_size"] * config["hidden_size"]
    if not config["tie_word_embeddings"]:
        parameters -= embedding
    layer_width = NF4_BYTES_PER_WEIGHT if job.in_4bit else width
    weights = (parameters - embedding) * layer_width + embedding * width
    kv_values = 2 * config["num_hidden_layers"] * config["head_dim"]
    kv_values *= config["num_key_value_heads"]
    context = job.prompt_tokens + job.max_tokens / 2
    return {
        size: size * bandwidth / (weights + size * context * kv_values * width)
        for size in job.batch_sizes
    }


def machine(device: str) -> dict[str, Any]:
    """Where and with what this runs: what a published figure has to name."""
    found = {package: find_version(package) for package in PACKAGES}
    versions = {name: str(version) for name, version in found.items() if version}
    versions = {"Python": platform.python_version(), **versions}
    name = list_gpus()[0].name if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    date = datetime.now(UTC).date().isoformat()
    return {"device": name, "date": date, "versions": versions}


def engine_settings(model: Any) -> dict[str, Any]:
    """What decides about the speed of an engine, as it was really set."""
    config = getattr(model, "vllm_engine", model).llm_engine.vllm_config
    scheduler = config.scheduler_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_lora": config.lora_config is not None,
        "enforce_eager": config.model_config.enforce_eager,
        "own_process": os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0",
    }


def main() -> None:
    values = json.loads(sys.argv[1])
    job = Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    path = Path(sys.argv[2])
    record: dict[str, Any] = {"engine": TITLES[job.engine], "precision": job.precision}

    def keep(**measured: Any) -> None:
        record.update(measured)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(path)

    device = detect_device()
    if job.engine == "vllm" and device == "cuda":  # As it comes: in a process beside.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    load_settings().apply()
    if job.engine.startswith("unsloth"):
        from helpers.loading import FastLanguageModel  # noqa: F401
    if job.on_vllm:
        import vllm  # noqa: F401
    bandwidth = measure_bandwidth(device)
    keep(machine=machine(device), bandwidth=bandwidth)
    before, start = measure_memory(), time.perf_counter()
    model, generate = load(job, device)
    keep(load_seconds=time.perf_counter() - start)
    keep(memory_mib=measure_memory() - before, limit=limits(job, device, bandwidth))
    if job.on_vllm:
        keep(settings=engine_settings(model))
    prompts = alike(max(job.batch_sizes), job.prompt_tokens)
    speeds, first = {}, {}
    for size in job.batch_sizes:
        figures = measure_engine(
            job.engine,
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
    different = {}
    for count in job.mixed:
        different[count] = measure_mixed(generate, job, count)
        keep(mixed=different)
    if job.engine == "unsloth-fast" and job.batch_tokens:
        keep(run_batch=measure_run_batch(model, job))


if __name__ == "__main__":
    main()
