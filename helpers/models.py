"""Name the models that the notebooks are written for, and the memory that each needs.

In go a name, a context and a precision; out come a spec and an estimate. Sizes are
computed from each model's published architecture. It knows nothing of this machine.
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
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
SMOLLM2_DIRECTORY = _CACHE / "fast-inference-notebooks/smollm2-0.1.2"
_EMBEDDED = {TINY_THINKER: TINY_THINKER_DIRECTORY, SMOLLM2: SMOLLM2_DIRECTORY}


# NF4: 4 bits a weight, and one 32-bit scale per block of 64 (QLoRA, arXiv:2305.14314);
# vLLM undoes the second quantisation, that of the scales, as it loads.
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
# A CUDA context, activations and vLLM's captured graphs: 1,000 to 1,310 MiB on an H100
# (models of 3 and 4 billion parameters in 16 and 4 bits, tests/gpu/test_gpu.py).
GPU_OVERHEAD_MIB = 1100
# The largest share of a GPU's free memory that is safe to give to one engine.
MOST_OF_A_GPU = 0.9
CPU_OVERHEAD_MIB = 1536  # torch, transformers and vLLM, imported: resident memory.


class UnknownModelError(ValueError):
    """A model name that is not in `MODELS`; the message names the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One supported model: its architecture and its authors' advice on sampling."""

    name: str
    parameters: int
    kept_parameters: int  # Those that a "4-bit" checkpoint keeps: first, the embedding.
    layers: int
    kv_width: int = 8 * 128  # Heads of keys or values, times the width of one.
    bytes_per_value: int = 2
    context_length: int
    sampling: Mapping[str, float]
    thinking_sampling: Mapping[str, float] | None = None  # If thinking is a choice.

    @property
    def path(self) -> str:
        """The hub path, or the folder of an embedded model."""
        return str(_EMBEDDED.get(self.name, self.name))

    @property
    def path_16bit(self) -> str:
        """The path of the same weights before quantisation."""
        return whole_name(self.path)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache for one token: a key and a value in every layer."""
        return 2 * self.layers * self.kv_width * self.bytes_per_value

    def weight_bytes(self, load_in_4bit: bool) -> int:
        """Count the bytes of the weights, of which some are quantised in 4 bits."""
        whole = self.kept_parameters if load_in_4bit else self.parameters
        quantised = (self.parameters - whole) * NF4_BYTES_PER_WEIGHT
        return round(whole * self.bytes_per_value + quantised)


def fixed(**values: Any) -> Mapping[str, Any]:
    """Make a mapping that nobody can change."""
    return MappingProxyType(values)


# The model cards and config.json of Qwen/Qwen3-4B and Qwen/Qwen3-4B-Thinking-2507.
QWEN3_THINKING_SAMPLING = fixed(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
_QWEN3_4B = fixed(
    parameters=4_022_468_096,
    # The second part is an estimate, of the layers that Unsloth finds sensitive.
    kept_parameters=151_936 * 2560 + 360_000_000,
    layers=36,
)
_SPECS = (
    ModelSpec(
        # tools/tiny_thinker/train.py; a test holds these against the model's files.
        name=TINY_THINKER,
        parameters=1_148_544,
        kept_parameters=1280 * 128,
        layers=4,
        kv_width=2 * 64,
        bytes_per_value=4,
        context_length=4096,
        sampling=QWEN3_THINKING_SAMPLING,
    ),
    ModelSpec(
        # huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json and card.
        name=SMOLLM2,
        parameters=134_515_008,
        kept_parameters=49_152 * 576,
        layers=30,
        kv_width=3 * 64,
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
        # huggingface.co/mistralai/Ministral-3-3B-Reasoning-2512, config.json.
        name="unsloth/Ministral-3-3B-Reasoning-2512",
        parameters=3_849_090_048,
        kept_parameters=131_072 * 3072 + 420_083_712,  # Vision encoder, projector.
        layers=26,
        context_length=262_144,
        sampling=fixed(temperature=0.7, top_p=0.95),  # From vLLM's recipes.
    ),
    ModelSpec(
        name="unsloth/Qwen3-4B-unsloth-bnb-4bit",
        context_length=32_768,
        sampling=fixed(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0),
        thinking_sampling=QWEN3_THINKING_SAMPLING,
        **_QWEN3_4B,
    ),
    ModelSpec(
        # huggingface.co/meta-llama/Llama-3.2-3B-Instruct, its two config files.
        name="unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
        parameters=3_212_749_824,
        kept_parameters=128_256 * 3072,
        layers=28,
        context_length=131_072,
        sampling=fixed(temperature=0.6, top_p=0.9),
    ),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({s.name: s for s in _SPECS})
_BY_SHORT_NAME = {s.name.lower().split("/")[-1]: s for s in _SPECS}


def get_model(name: str) -> ModelSpec:
    """Return a supported model by its name, or by the last part of it, in any case.

    Raises `UnknownModelError` with the nearest supported names.
    """
    wanted = str(name).strip().lower()
    for short, spec in _BY_SHORT_NAME.items():
        if wanted in (short, spec.name.lower()):
            return spec
    near = " or ".join(nearest_models(wanted))
    hint = f" Did you mean {near}?" if near else ""
    raise UnknownModelError(
        f"no supported model is called {name!r}.{hint} Supported: {', '.join(MODELS)}."
    )


def nearest_models(name: str) -> list[str]:
    """Return up to two supported names that look like `name`, the nearest first."""
    wanted = name.lower().split("/")[-1]
    parts = [short for short in _BY_SHORT_NAME if wanted and wanted in short]
    near = difflib.get_close_matches(wanted, _BY_SHORT_NAME, n=2, cutoff=0.4)
    return [_BY_SHORT_NAME[short].name for short in dict.fromkeys([*parts, *near])][:2]


def whole_name(path: str) -> str:
    """Return the repository of the 16-bit weights; a folder stays as it is."""
    return path if Path(path).is_dir() else re.sub(r"(-unsloth)?-bnb-4bit$", "", path)


def cached_name(path: str) -> str | None:
    """Return the Hub's name of a model for a path into the Hub's cache; else None."""
    found = re.search(r"models--(.+?)--([^/]+)/snapshots/", path)
    return f"{found[1]}/{found[2]}" if found else None


def find_model(path: str) -> ModelSpec | None:
    """Return the supported model of a folder or a hub path, quantised or not."""
    path = cached_name(path) or path
    return next((s for s in _SPECS if path in (s.path, s.path_16bit)), None)


def is_embedded(path: str) -> bool:
    """Tell whether a path is the folder of tiny-thinker or smollm2, in 32 bits."""
    return path in map(str, _EMBEDDED.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """What a load will need, in MiB, and the settings that it was computed for."""

    model: ModelSpec
    max_seq_length: int
    concurrency: int
    load_in_4bit: bool

    weights_mib: int
    request_mib: float  # The KV cache of one sequence of full length.
    overhead_mib: int

    @property
    def kv_cache_mib(self) -> int:
        """The KV cache of all sequences that are in flight at once, in MiB."""
        return math.ceil(self.concurrency * self.request_mib)

    @property
    def fixed_mib(self) -> int:
        """Weights and overhead, in MiB, whatever the requests are."""
        return self.weights_mib + self.overhead_mib

    @property
    def total_mib(self) -> int:
        """Weights, KV cache and overhead together, in MiB."""
        return self.fixed_mib + self.kv_cache_mib

    def held_at_once(self, available_mib: float) -> int:
        """Count the requests of full length that fit in `available_mib`."""
        return max(0, int((available_mib - self.fixed_mib) // self.request_mib))

    def fits(self, available_mib: float) -> bool:
        """Tell whether a load fits: one request must, vLLM lets the others wait."""
        return self.held_at_once(available_mib) > 0

    def advice(self, free_mib: float, gpu_memory_utilization: float = 1.0) -> str:
        """Say how many requests fit at once, or which value to change.

        `free_mib` are MiB of free memory, of which the engine takes the share
        `gpu_memory_utilization`. The value named is the one that costs the least.
        """
        share = free_mib * gpu_memory_utilization
        if count := self.held_at_once(share):
            requests = f"{count:,} requests of {self.max_seq_length:,} tokens"
            return f"Fits: {requests} at once in {share:,.0f} MiB; vLLM queues more."
        least = self.fixed_mib + math.ceil(self.request_mib)
        four = estimate_memory(self.model, self.max_seq_length, 1, load_in_4bit=True)
        room = (share - self.fixed_mib) * MIB // self.model.kv_bytes_per_token
        if self.fits(free_mib * MOST_OF_A_GPU):
            enough = math.ceil(20 * least / free_mib) / 20
            change = f"Set GPU_MEMORY_UTILIZATION to auto or {enough:g}."
        elif four.fits(share):
            change = f"LOAD_IN_4BIT=true brings it to {four.total_mib:,} MiB."
        elif not self.load_in_4bit:
            change = four.advice(free_mib, gpu_memory_utilization)
            change = f"With LOAD_IN_4BIT=true: {change}"
        elif room >= 512:
            change = f"Lower MAX_SEQ_LENGTH to {int(room) // 256 * 256}."
        else:
            change = f"Choose a smaller model: MODEL_NAME={TINY_THINKER} runs anywhere."
        need = f"{least:,} MiB needed, {share:,.0f} MiB available"
        return f"Does not fit: {need}. {change}"

    def __str__(self) -> str:
        return (
            f"{self.model.name}: {self.total_mib:,} MiB (weights {self.weights_mib:,}, "
            f"KV cache {self.kv_cache_mib:,} for {self.concurrency} x "
            f"{self.max_seq_length:,} tokens, other {self.overhead_mib:,})"
        )


def estimate_memory(
    model: str | ModelSpec,
    max_seq_length: int = 2048,
    concurrency: int = 1,
    load_in_4bit: bool = True,
) -> MemoryEstimate:
    """Estimate the memory of a load, before the minutes that the load takes.

    `concurrency` sequences of `max_seq_length` tokens, prompt and completion together,
    are in flight at once. Raises `UnknownModelError` for an unknown name, `ValueError`
    for lengths below 1 or past the model's context.
    """
    spec = model if isinstance(model, ModelSpec) else get_model(model)
    if concurrency < 1 or not 1 <= max_seq_length <= spec.context_length:
        raise ValueError(
            f"{spec.name} takes a max_seq_length from 1 to {spec.context_length:,} "
            f"tokens and a concurrency from 1, not {max_seq_length:,} and {concurrency}"
        )
    weights = math.ceil(spec.weight_bytes(load_in_4bit) / MIB)
    request = spec.kv_bytes_per_token * max_seq_length / MIB
    overhead = CPU_OVERHEAD_MIB if is_embedded(spec.path) else GPU_OVERHEAD_MIB
    asked = (spec, max_seq_length, concurrency, load_in_4bit)
    return MemoryEstimate(*asked, weights, request, overhead)
