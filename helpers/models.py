"""The models that the notebooks are written for, and what each of them needs.

Sizes are computed from each model's published architecture, so that a change is one
number and not five. Nothing here imports torch or touches the network.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

MIB = 1024 * 1024

TINY_THINKER, SMOLLM2 = "tiny-thinker", "smollm2"
TINY_THINKER_DIRECTORY = Path(__file__).resolve().parent / "tiny_thinker" / "model"
# Made by internals.engine.smollm2; outside of the project, so that it stays.
SMOLLM2_DIRECTORY = Path(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
    "fast-inference-notebooks",
    "smollm2-0.1.2",
)
_EMBEDDED = {TINY_THINKER: TINY_THINKER_DIRECTORY, SMOLLM2: SMOLLM2_DIRECTORY}

# How Unsloth names its checkpoints in 4 bits on the hub.
_QUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")
# The folder of a repository in the hub's cache.
_SNAPSHOT = re.compile(r"models--(.+?)--([^/]+)/snapshots/")

# NF4: 4 bits a weight, and one 32-bit scale per block of 64. On disk the scales take 8
# bits (double quantisation, QLoRA, arXiv:2305.14314, section 3); vLLM undoes that as it
# loads (vllm/model_executor/model_loader/bitsandbytes_loader.py, _dequantize_dq).
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
# What a CUDA context, activations and vLLM's captured graphs take beside weights and
# KV cache: 740 to 830 MiB on an H100 without the graphs, 1,000 to 1,310 with them
# (models of 3 and 4 billion parameters in 16 and 4 bits, tests/gpu/test_gpu.py).
GPU_OVERHEAD_MIB = 1100
# The largest share of a GPU's free memory that is safe to give to one engine.
MOST_OF_A_GPU = 0.9
CPU_OVERHEAD_MIB = 1536  # torch, transformers and vLLM, imported: resident memory.


class UnknownModelError(ValueError):
    """A model name that is not in `MODELS`; the message names the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One supported model; the sizes of its weights and caches are worked out of it.

    `sampling` is what its authors recommend. A hybrid model, which can think and need
    not, has `thinking_sampling` for when it does.
    """

    name: str
    parameters: int
    embedding_parameters: int
    layers: int
    kv_heads: int = 8
    head_dim: int = 128
    bytes_per_value: int = 2
    # Weights outside the embedding that a "4-bit" checkpoint keeps at 16 bits.
    kept_16bit_parameters: int = 0
    context_length: int
    sampling: Mapping[str, float]
    thinking_sampling: Mapping[str, float] | None = None

    @property
    def path(self) -> str:
        """What `from_pretrained` takes: a hub path, or an embedded model's folder."""
        return str(_EMBEDDED.get(self.name, self.name))

    @property
    def path_16bit(self) -> str:
        """The path of the same weights before quantisation; often `path` itself."""
        return whole_name(self.path)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache for one token: a key and a value in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value

    def weight_bytes(self, load_in_4bit: bool) -> int:
        """Bytes of the weights; in 4-bit the embedding stays as it was."""
        if not load_in_4bit:
            return self.parameters * self.bytes_per_value
        whole = self.embedding_parameters + self.kept_16bit_parameters
        quantised = self.parameters - whole
        return round(whole * self.bytes_per_value + quantised * NF4_BYTES_PER_WEIGHT)


def fixed(**values: Any) -> Mapping[str, Any]:
    """Make a mapping that nobody can change."""
    return MappingProxyType(values)


# The model cards of Qwen/Qwen3-4B-Thinking-2507 and of Qwen/Qwen3-4B.
QWEN3_THINKING_SAMPLING = fixed(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
_QWEN3_SAMPLING = fixed(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
# huggingface.co/Qwen/Qwen3-4B, config.json; Qwen3-4B-Thinking-2507 has the same.
_QWEN3_4B = fixed(
    parameters=4_022_468_096,
    embedding_parameters=151_936 * 2560,
    layers=36,
    # Unsloth's dynamic quantisation leaves sensitive layers at 16 bits; a tenth of the
    # rest is an estimate.
    kept_16bit_parameters=360_000_000,
)
_SPECS = (
    ModelSpec(
        # tools/tiny_thinker/train.py; a test holds these against the model's files.
        name=TINY_THINKER,
        parameters=1_148_544,
        embedding_parameters=1280 * 128,
        layers=4,
        kv_heads=2,
        head_dim=64,
        bytes_per_value=4,
        context_length=4096,
        sampling=QWEN3_THINKING_SAMPLING,
    ),
    ModelSpec(
        # huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json and card.
        name=SMOLLM2,
        parameters=134_515_008,
        embedding_parameters=49_152 * 576,
        layers=30,
        kv_heads=3,
        head_dim=64,
        bytes_per_value=4,
        context_length=8192,
        sampling=fixed(temperature=0.2, top_p=0.9),
    ),
    ModelSpec(
        name="unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit",
        context_length=262_144,
        sampling=QWEN3_THINKING_SAMPLING,
        **_QWEN3_4B,
    ),
    ModelSpec(
        # huggingface.co/mistralai/Ministral-3-3B-Reasoning-2512, config.json: language
        # model of 3.4 billion, vision encoder and its projector of 0.4 billion.
        name="unsloth/Ministral-3-3B-Reasoning-2512",
        parameters=3_849_090_048,
        embedding_parameters=131_072 * 3072,
        layers=26,
        kept_16bit_parameters=420_083_712,  # The vision encoder and its projector.
        context_length=262_144,
        # vLLM recipes, Ministral-3-Reasoning; keep its system prompt.
        sampling=fixed(temperature=0.7, top_p=0.95),
    ),
    ModelSpec(
        name="unsloth/Qwen3-4B-unsloth-bnb-4bit",
        context_length=32_768,
        sampling=_QWEN3_SAMPLING,
        thinking_sampling=QWEN3_THINKING_SAMPLING,
        **_QWEN3_4B,
    ),
    ModelSpec(
        # huggingface.co/meta-llama/Llama-3.2-3B-Instruct, config.json and
        # generation_config.json.
        name="unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
        parameters=3_212_749_824,
        embedding_parameters=128_256 * 3072,
        layers=28,
        context_length=131_072,
        sampling=fixed(temperature=0.6, top_p=0.9),
    ),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({s.name: s for s in _SPECS})


def get_model(name: str) -> ModelSpec:
    """Return a supported model by its name, or by the last part of it, in any case.

    Raises `UnknownModelError` with the nearest supported names.
    """
    wanted = str(name).strip().lower()
    for known, spec in MODELS.items():
        if wanted in (known.lower(), known.lower().split("/")[-1]):
            return spec
    near = nearest_models(wanted)
    raise UnknownModelError(
        f"no supported model is called {name!r}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"Supported: {', '.join(MODELS)}."
    )


def whole_name(path: str) -> str:
    """Return the repository of the 16-bit weights; a folder stays as it is."""
    return path if Path(path).is_dir() else _QUANTISED.sub("", path)


def cached_name(path: str) -> str | None:
    """Return the Hub's name of a model for a path into the Hub's cache; else None."""
    found = _SNAPSHOT.search(path)
    return f"{found[1]}/{found[2]}" if found else None


def find_model(path: str) -> ModelSpec | None:
    """Return the supported model of a folder or a hub path, quantised or not."""
    path = cached_name(path) or path
    specs = MODELS.values()
    return next((s for s in specs if path in (s.path, s.path_16bit)), None)


def is_embedded(path: str) -> bool:
    """Tell whether a path is the folder of tiny-thinker or smollm2, in 32 bits."""
    return path in map(str, _EMBEDDED.values())


def nearest_models(name: str) -> list[str]:
    """Return up to two supported names that look like `name`, the nearest first."""
    wanted = name.lower().split("/")[-1]
    by_short = {known.lower().split("/")[-1]: known for known in MODELS}
    parts = [short for short in by_short if wanted and wanted in short]
    near = difflib.get_close_matches(wanted, by_short, n=2, cutoff=0.4)
    return [by_short[short] for short in dict.fromkeys([*parts, *near])][:2]


@dataclass(frozen=True)
class MemoryEstimate:
    """What a load will need, in MiB, and the settings that it was computed for."""

    model: ModelSpec
    max_seq_length: int
    concurrency: int
    load_in_4bit: bool
    weights_mib: int
    kv_cache_mib: int
    overhead_mib: int

    @property
    def fixed_mib(self) -> int:
        """Weights and overhead, in MiB, whatever the requests are."""
        return self.weights_mib + self.overhead_mib

    @property
    def total_mib(self) -> int:
        """Weights, KV cache and overhead together, in MiB."""
        return self.fixed_mib + self.kv_cache_mib

    @property
    def smallest_mib(self) -> int:
        """What a load takes at least, in MiB: with a cache for one full-length request.

        vLLM lets further requests wait, so `concurrency` is no condition of a load.
        """
        return self.fixed_mib + math.ceil(self._request_mib)

    @property
    def _request_mib(self) -> float:
        return self.model.kv_bytes_per_token * self.max_seq_length / MIB

    def fits(self, available_mib: float) -> bool:
        """Tell whether `available_mib`, which the engine may take, are enough."""
        return self.smallest_mib <= available_mib

    def held_at_once(self, available_mib: float) -> int:
        """Count the requests of full length that fit in `available_mib`."""
        return max(0, int((available_mib - self.fixed_mib) // self._request_mib))

    def advice(self, free_mib: float, gpu_memory_utilization: float = 1.0) -> str:
        """Say how many requests fit at once, or which value to change.

        `free_mib` are MiB of free memory, of which the engine takes the share
        `gpu_memory_utilization`. The value named is the one that costs the least.
        """
        share = free_mib * gpu_memory_utilization
        if self.fits(share):
            return (
                f"Fits: {self.held_at_once(share):,} requests of "
                f"{self.max_seq_length:,} tokens at once in {share:,.0f} MiB; vLLM "
                "queues more."
            )
        need = f"Does not fit: {self.smallest_mib:,} MiB needed"
        need += f", {share:,.0f} MiB available"
        if self.fits(free_mib * MOST_OF_A_GPU):
            enough = math.ceil(20 * self.smallest_mib / free_mib) / 20
            return f"{need}. Set GPU_MEMORY_UTILIZATION to auto or {enough:g}."
        if not self.load_in_4bit:
            four = estimate_memory(self.model, self.max_seq_length, 1, True)
            if four.fits(share):
                return f"{need}. LOAD_IN_4BIT=true brings it to {four.total_mib:,} MiB."
            rest = four.advice(free_mib, gpu_memory_utilization)
            return f"{need}. With LOAD_IN_4BIT=true: {rest}"
        room = (share - self.fixed_mib) * MIB
        tokens = int(room // self.model.kv_bytes_per_token)
        if tokens >= 512:
            return f"{need}. Lower MAX_SEQ_LENGTH to {tokens // 256 * 256}."
        return (
            f"{need}, and weights and overhead alone take {self.fixed_mib:,} MiB. "
            f"Choose a smaller model: MODEL_NAME={TINY_THINKER} runs anywhere."
        )

    def __str__(self) -> str:
        return (
            f"{self.model.name}: {self.total_mib:,} MiB "
            f"(weights {self.weights_mib:,}, KV cache {self.kv_cache_mib:,} for "
            f"{self.concurrency} x {self.max_seq_length:,} tokens, "
            f"other {self.overhead_mib:,})"
        )


def estimate_memory(
    model: str | ModelSpec,
    max_seq_length: int = 2048,
    concurrency: int = 1,
    load_in_4bit: bool = True,
) -> MemoryEstimate:
    """Estimate the memory of a load, before the minutes that the load takes.

    `model` is a supported name or a spec. `max_seq_length` is in tokens, prompt and
    completion together; `concurrency` sequences of that length are in flight at once.
    It is an upper bound for the KV cache: shorter sequences take less.

    Raises `UnknownModelError` for an unknown name, `ValueError` for lengths below 1 or
    past the model's context.
    """
    spec = model if isinstance(model, ModelSpec) else get_model(model)
    if concurrency < 1 or not 1 <= max_seq_length <= spec.context_length:
        raise ValueError(
            f"{spec.name} takes a max_seq_length from 1 to {spec.context_length:,} "
            f"tokens and a concurrency from 1, not {max_seq_length:,} and {concurrency}"
        )
    kv_bytes = spec.kv_bytes_per_token * max_seq_length * concurrency
    return MemoryEstimate(
        spec,
        max_seq_length,
        concurrency,
        load_in_4bit,
        weights_mib=math.ceil(spec.weight_bytes(load_in_4bit) / MIB),
        kv_cache_mib=math.ceil(kv_bytes / MIB),
        overhead_mib=CPU_OVERHEAD_MIB if is_embedded(spec.path) else GPU_OVERHEAD_MIB,
    )
