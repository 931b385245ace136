"""Load each engine of the comparison, and give all of them the same call.

A `Job` goes in; a model and a `Generate` come out. What is measured with them, and in
what order, is not known here.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device, resolve_model_path
from helpers.internals.machine.settings import load_settings

from .quantise import write_quantised

# Takes prompts as token ids and how many new tokens each gets; returns the new ids.
Generate = Callable[[Sequence[Sequence[int]], Sequence[int]], list[Sequence[int]]]
ADAPTER_RANK = 16
_loaded: dict[str, Generate] = {}  # the engine of a process that has but one


@dataclass(frozen=True)
class Row:
    """A row of the table: what it is called, and what it takes to load it.

    `engine` is "transformers", "transformers-batch", "unsloth", "unsloth-fast", "vllm"
    or "vllm-each", an engine on each of `gpus`; `vllm_options` are arguments of
    `vllm.LLM`.
    """

    title: str
    engine: str
    precision: str = "16-bit"
    adapter: bool = False
    gpu_only: bool = False
    gpus: int = 1
    vllm_options: tuple[tuple[str, str | int], ...] = ()

    @property
    def on_vllm(self) -> bool:
        return self.engine in ("unsloth-fast", "vllm")

    @property
    def bytes_per_weight(self) -> float | None:
        """Bytes of one weight within the layers; None for the model's own type."""
        # bitsandbytes in vLLM: 4 bits, and one 32-bit scale for 64 weights. GPTQ: 4
        # bits, and one 16-bit scale for 128 weights.
        of_precision = {"4-bit": 4.5 / 8, "GPTQ": 4.125 / 8, "FP8": 1.0}
        return of_precision.get(self.precision.partition(",")[0])


FP8 = ("quantization", "fp8")
FP8_CACHE = ("kv_cache_dtype", "fp8")
# By importance: when time is short, the last ones are left out.
ROWS = {
    "unsloth-fast": Row("Unsloth fast_generate", "unsloth-fast"),
    "transformers": Row("transformers generate", "transformers"),
    "transformers-batch": Row("transformers generate_batch", "transformers-batch"),
    "vllm-fp8": Row("vLLM, bare", "vllm", "FP8", gpu_only=True, vllm_options=(FP8,)),
    "unsloth-fast-4bit": Row(
        "Unsloth fast_generate", "unsloth-fast", "4-bit", gpu_only=True
    ),
    "vllm": Row("vLLM, bare", "vllm"),
    "unsloth-fast-adapter": Row(
        "Unsloth fast_generate, adapter", "unsloth-fast", adapter=True
    ),
    "vllm-gptq": Row("vLLM, bare", "vllm", "GPTQ", gpu_only=True),
    "vllm-fp8-cache": Row(
        "vLLM, bare",
        "vllm",
        "FP8, FP8 cache",
        gpu_only=True,
        vllm_options=(FP8, FP8_CACHE),
    ),
    "unsloth": Row("Unsloth generate", "unsloth"),
    "vllm-tensor-parallel": Row(
        "vLLM, one engine on two GPUs",
        "vllm",
        gpu_only=True,
        gpus=2,
        vllm_options=(("tensor_parallel_size", 2),),
    ),
    "vllm-each": Row("vLLM, an engine on each of two GPUs", "vllm-each", gpus=2),
}


@dataclass(frozen=True)
class Job:
    """The work of one child process.

    `row` is a key of `ROWS`; on a CPU "16-bit" are the 32 bits that it computes in.
    `prompt_tokens` and `max_tokens` are those of each prompt where all are alike.
    `mixed` are the numbers of prompts of different lengths, `mixed_prompt` and
    `mixed_answer` their shortest and longest length in tokens. `generate` takes at most
    `at_once` of these prompts in one batch. They are not repeated once their runs took
    `enough_seconds` in all, and are left out if one would take more than twice that.
    """

    row: str
    model: str
    batch_sizes: tuple[int, ...] = (1, 256, 64, 8, 32)
    prompt_tokens: int = 64
    max_tokens: int = 128
    mixed: tuple[int, ...] = (64, 256)
    mixed_prompt: tuple[int, int] = (16, 512)
    mixed_answer: tuple[int, int] = (64, 1024)
    at_once: int = 64
    repeats: int = 3
    enough_seconds: float = 60.0
    gpu_memory_utilization: float = 0.5

    @property
    def most_prompts(self) -> int:
        return max((*self.batch_sizes, *self.mixed))

    @property
    def max_length(self) -> int:
        """Room for the longest prompt and its completion, in whole blocks of 256."""
        alike = self.prompt_tokens + self.max_tokens
        longest = max(alike, self.mixed_prompt[1] + self.mixed_answer[1])
        return -(-(longest + 1) // 256) * 256

    def vllm_arguments(self) -> dict[str, Any]:
        """Arguments of the engine, the same for bare vLLM and for Unsloth's."""
        # Without a prefix cache, or repeats would not read their prompts again. Unsloth
        # takes 256 sequences for "not given", and then fewer on a card with less room.
        return {
            "enable_prefix_caching": False,
            "max_num_seqs": 257 if self.most_prompts == 256 else self.most_prompts,
            "gpu_memory_utilization": self.gpu_memory_utilization,
        }


def load(job: Job, device: str) -> tuple[Any, Generate]:
    """Load the row's model or engine; return it and the call that is measured."""
    import torch

    row = ROWS[job.row]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    path = str(Path(resolve_model_path(job.model)).resolve())
    if row.engine == "vllm":
        return load_vllm(job, row, path, dtype, device)
    if row.engine == "vllm-each":
        pools = [start_engine(job, number, device) for number in range(row.gpus)]
        return pools, partial(generate_with_each, pools)
    if row.engine.startswith("transformers"):
        return load_transformers(job, row, path, dtype, device)
    from helpers.loading import FastLanguageModel

    options = {"load_in_4bit": row.precision == "4-bit"}
    if row.on_vllm:
        options |= {"fast_inference": True, **job.vllm_arguments()}
        if device == "cpu" and row.adapter:  # Unsloth's engine on a GPU takes any.
            options["max_lora_rank"] = ADAPTER_RANK
    model, _ = FastLanguageModel.from_pretrained(
        path, max_seq_length=job.max_length, dtype=dtype, **options
    )
    if row.on_vllm:
        adapter = make_adapter(path) if row.adapter else None
        return model, partial(generate_with_vllm, model.fast_generate, adapter)
    FastLanguageModel.for_inference(model)
    return model, partial(generate_with_torch, model, job.at_once)


def load_vllm(
    job: Job, row: Row, path: str, dtype: Any, device: str
) -> tuple[Any, Generate]:
    from vllm import LLM

    arguments = job.vllm_arguments() | dict(row.vllm_options)
    if device == "cpu":  # As helpers.internals.engine.cpu does.
        del arguments["gpu_memory_utilization"]
        arguments["enforce_eager"] = True
    if row.precision == "GPTQ":
        path = str(write_quantised(path, Path(tempfile.mkdtemp(prefix="gptq-"))))
    engine = LLM(
        path,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=job.max_length,
        **arguments,
    )
    return engine, partial(generate_with_vllm, engine.generate, None)


def load_in_process(model: str, most: int, **arguments: Any) -> Any:
    """Load bare vLLM for `most` requests at once where its steps can be watched.

    `arguments` are those of `vllm.LLM`, and win.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    load_settings().apply()
    from vllm import LLM

    own: dict[str, Any] = {"enforce_eager": True, "dtype": "float32"}
    if detect_device() == "cuda":
        own = {"gpu_memory_utilization": 0.5, "dtype": "bfloat16"}
    own["max_num_seqs"] = 257 if most == 256 else most  # Unsloth takes 256 for none.
    path = str(Path(resolve_model_path(model)).resolve())
    return LLM(path, enable_prefix_caching=False, **own | arguments)


def start_engine(job: Job, number: int, device: str) -> ProcessPoolExecutor:
    """Load bare vLLM on one of the visible GPUs, in a process of its own."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    pool.submit(_load_here, replace(job, row="vllm"), number, device).result()
    return pool


def _load_here(job: Job, number: int, device: str) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or "0,1,2,3,4,5,6,7"
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number]
    _loaded["generate"] = load(job, device)[1]


def _generate_here(*arguments: Any) -> list[list[int]]:
    return [list(ids) for ids in _loaded["generate"](*arguments)]


def generate_with_each(
    pools: Sequence[ProcessPoolExecutor],
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
) -> list[list[int]]:
    """Deal the prompts out to the engines like cards; return them in their order."""
    count, found = len(pools), [[]] * len(prompts)
    asked = [
        pool.submit(_generate_here, prompts[first::count], max_tokens[first::count])
        for first, pool in enumerate(pools[: len(prompts)])
    ]
    for first, future in enumerate(asked):
        found[first::count] = future.result()
    return found


def load_transformers(
    job: Job, row: Row, path: str, dtype: Any, device: str
) -> tuple[Any, Generate]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, device_map=device
    ).eval()
    if row.engine == "transformers":
        return model, partial(generate_with_torch, model, job.at_once)
    manager = start_manager(model, job, device)
    model.comparison_settings = {"attention": model.config._attn_implementation}
    return model, partial(generate_with_manager, manager)


def start_manager(model: Any, job: Job, device: str) -> Any:
    """Start what `generate_batch` runs on, once for all batches, as a server would.

    The settings are the fastest that transformers 5.17 has: CUDA graphs, and the next
    batch prepared while one runs. By itself it takes FlashAttention where that is
    installed, and with it a faster path for decoding. Prompts are not shared, as
    nowhere in the comparison.
    """
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    config: dict[str, Any] = {"allow_block_sharing": False}
    if device == "cuda":
        config |= {"use_cuda_graph": True, "use_async_batching": True}
    else:  # There it would take its sizes from a GPU.
        config |= {"block_size": 32, "num_blocks": 400, "max_batch_tokens": 2048}
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=job.max_length,
        eos_token_id=-1,
        pad_token_id=model.config.pad_token_id or 0,
    )
    manager = model.init_continuous_batching(
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(**config),
        workload_hints=WorkloadHints(
            max_prompt_length=max(job.prompt_tokens, job.mixed_prompt[1]),
            max_generated_length=max(job.max_tokens, job.mixed_answer[1]),
            num_requests=job.most_prompts,
        ),
    )
    if device == "cuda":
        manager.warmup()
    manager.start()
    return manager


def make_adapter(path: str) -> Any:
    """Write a random adapter of rank `ADAPTER_RANK`; return vLLM's request for it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    directory = tempfile.mkdtemp(prefix="adapter-")
    config = LoraConfig(
        r=ADAPTER_RANK, target_modules="all-linear", init_lora_weights=False
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    get_peft_model(model, config).save_pretrained(directory)
    return LoRARequest("random", 1, directory)


def generate_with_vllm(
    generate: Callable[..., list[Any]],
    adapter: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
) -> list[Sequence[int]]:
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in max_tokens
    ]
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = generate(inputs, params, use_tqdm=False, lora_request=adapter)
    return [output.outputs[0].token_ids for output in outputs]


def generate_with_torch(
    model: Any,
    at_once: int,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
) -> list[list[int]]:
    """Call `generate` in batches: each goes on to the longest answer in it."""
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


def generate_with_manager(
    manager: Any, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]
) -> list[list[int]]:
    """Do what `generate_batch` does, with a length for each prompt of its own.

    Raises `RuntimeError` if a request fails or the manager's thread ends.
    """
    names = [
        manager.add_request(list(ids), max_new_tokens=n)
        for ids, n in zip(prompts, max_tokens, strict=True)
    ]
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("generate_batch's thread ended")
        elif result.error is not None:
            raise RuntimeError(f"generate_batch failed: {result.error}")
        elif result.is_finished():
            found[result.request_id] = result.generated_tokens
    return [found[name] for name in names]


def engine_settings(model: Any) -> dict[str, Any]:
    """Return what decides about the speed of an engine, as it was really set."""
    if settings := getattr(model, "comparison_settings", None):
        return settings
    config = getattr(model, "vllm_engine", model).llm_engine.vllm_config
    scheduler = config.scheduler_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_lora": config.lora_config is not None,
        "enforce_eager": config.model_config.enforce_eager,
        "own_process": os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0",
    }
