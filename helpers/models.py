"""Name the models that the notebooks are written for, and the memory that each needs.

In go a name, a context and a precision; out come a spec and an estimate of memory.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

MIB = 1024 * 1024

TINY_THINKER, SMOLLM2 = "tiny-thinker", "smollm2"
GPU_MODEL = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
QWEN3_MODEL = "unsloth/Qwen3-4B-unsloth-bnb-4bit"  # Thinking is a choice.
MINISTRAL_MODEL = "unsloth/Ministral-3-3B-Reasoning-2512"
LLAMA_MODEL = "unsloth/Llama-3.2-3B-Instruct-bnb-4bit"
TINY_THINKER_DIRECTORY = Path(__file__).resolve().parent / "tiny_thinker" / "model"
# Made by internals.engine.smollm2; outside of the project, so that it stays.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
CACHE /= "fast-inference-notebooks"
SMOLLM2_DIRECTORY = CACHE / "smollm2-0.1.2"
_EMBEDDED = {TINY_THINKER: TINY_THINKER_DIRECTORY, SMOLLM2: SMOLLM2_DIRECTORY}

# NF4: 4 bits a weight, and one 32-bit scale per block of 64 (QLoRA, arXiv:2305.14314);
# vLLM undoes the second quantisation, that of the scales, as it loads.
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
# A CUDA context, activations and vLLM's captured graphs: 1,000 to 1,310 MiB on an H100
# (models of 3 and 4 billion parameters in 16 and 4 bits, tests/gpu/test_gpu.py).
GPU_OVERHEAD_MIB = 1100
CPU_OVERHEAD_MIB = 1536  # torch, transformers and vLLM, imported: resident memory.
MOST_OF_A_GPU = 0.9  # Of its free memory: the largest share that is safe to take.


class UnknownModelError(ValueError):
    """A model name that is not in `MODELS`; the message names the nearest ones."""


class Shape(NamedTuple):
    """The numbers of an architecture that decide how much memory it takes."""

    parameters: int
    kept: int  # Those that a "4-bit" checkpoint keeps whole: first, the embedding.
    layers: int
    kv_width: int = 8 * 128  # Heads of keys or values, times the width of one.
    value_bytes: int = 2


@dataclass(frozen=True)
class ModelSpec:
    """One supported model: its architecture and its authors' advice on sampling."""

    name: str
    shape: Shape
    context_length: int
    sampling: Mapping[str, float]
    thinking_sampling: Mapping[str, float] | None = None  # If thinking is a choice.

    @property
    def is_embedded(self) -> bool:
        """True for tiny-thinker and smollm2, whose weights have 32 bits."""
        return self.name in _EMBEDDED

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
        return 2 * self.shape.layers * self.shape.kv_width * self.shape.value_bytes

    def weight_bytes(self, load_in_4bit: bool) -> int:
        """Count the bytes of the weights, of which some are quantised in 4 bits."""
        whole = self.shape.kept if load_in_4bit else self.shape.parameters
        quantised = (self.shape.parameters - whole) * NF4_BYTES_PER_WEIGHT
        return round(whole * self.shape.value_bytes + quantised)


def fixed(**values: Any) -> Mapping[str, Any]:
    """Make a mapping that nobody can change."""
    return MappingProxyType(values)


# From the cards and config.json on huggingface.co, and tools/tiny_thinker/train.py.
_TINY = Shape(1_148_544, 1280 * 128, layers=4, kv_width=2 * 64, value_bytes=4)
_SMOLLM2 = Shape(134_515_008, 49_152 * 576, layers=30, kv_width=3 * 64, value_bytes=4)
# 360 million is an estimate, of the layers that Unsloth finds sensitive.
_QWEN3_4B = Shape(4_022_468_096, 151_936 * 2560 + 360_000_000, layers=36)
# 420 million are the vision encoder and its projector.
_MINISTRAL_3B = Shape(3_849_090_048, 131_072 * 3072 + 420_083_712, layers=26)
_LLAMA_3B = Shape(3_212_749_824, 128_256 * 3072, layers=28)
QWEN3_THINKING_SAMPLING = fixed(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
_QWEN3_SAMPLING = fixed(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
_MINISTRAL_SAMPLING = fixed(temperature=0.7, top_p=0.95)  # From vLLM's recipes.
_SPECS = (
    ModelSpec(TINY_THINKER, _TINY, 4096, QWEN3_THINKING_SAMPLING),
    ModelSpec(SMOLLM2, _SMOLLM2, 8192, fixed(temperature=0.2, top_p=0.9)),
    ModelSpec(GPU_MODEL, _QWEN3_4B, 262_144, QWEN3_THINKING_SAMPLING),
    ModelSpec(MINISTRAL_MODEL, _MINISTRAL_3B, 262_144, _MINISTRAL_SAMPLING),
    ModelSpec(QWEN3_MODEL, _QWEN3_4B, 32_768, _QWEN3_SAMPLING, QWEN3_THINKING_SAMPLING),
    ModelSpec(LLAMA_MODEL, _LLAMA_3B, 131_072, fixed(temperature=0.6, top_p=0.9)),
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
    problem = f"no supported model is called {name!r}.{did_you_mean(wanted)}"
    raise UnknownModelError(f"{problem} Supported: {', '.join(MODELS)}.")


def did_you_mean(name: str) -> str:
    """Ask for up to two supported names that look like `name`; "" if none does."""
    wanted = name.lower().split("/")[-1]
    parts = [short for short in _BY_SHORT_NAME if wanted in short]
    near = difflib.get_close_matches(wanted, _BY_SHORT_NAME, n=2, cutoff=0.4)
    names = [_BY_SHORT_NAME[one].name for one in dict.fromkeys([*parts, *near])]
    return f" Did you mean {' or '.join(names[:2])}?" if names else ""


def whole_name(path: str) -> str:
    """Return the repository of the 16-bit weights; a folder stays as it is."""
    return path if Path(path).is_dir() else re.sub(r"(-unsloth)?-bnb-4bit$", "", path)


def cached_name(path: str) -> str | None:
    """Return the Hub's name of a model for a path into the Hub's cache; else None."""
    found = re.search(r"models--(.+?)--([^/]+)/snapshots/", path)
    return f"{found[1]}/{found[2]}" if found else None


def find_model(path: str) -> ModelSpec | None:
    """Return the supported model of a folder or a hub path, quantised or not."""
    real = os.path.realpath(path)  # of a relative path, or of a link
    names = {path, real, cached_name(real)} - {None}
    return next((s for s in _SPECS if names & {s.path, s.path_16bit}), None)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a load will need, in MiB, and the settings that it was computed for."""

    model: ModelSpec
    max_seq_length: int
    concurrency: int
    load_in_4bit: bool
    weights_mib: int
    request_mib: float  # The KV cache of one sequence of full length.
    kv_cache_mib: int  # That of all sequences which are in flight at once.
    overhead_mib: int

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
        """Say how many requests fit at once, or the change that costs the least.

        The engine takes the share `gpu_memory_utilization` of `free_mib` MiB.
        """
        share = free_mib * gpu_memory_utilization
        if count := self.held_at_once(share):
            requests = f"{count:,} requests of {self.max_seq_length:,} tokens"
            return f"Fits: {requests} at once in {share:,.0f} MiB; vLLM queues more."
        least = self.fixed_mib + math.ceil(self.request_mib)
        four = estimate_memory(self.model, self.max_seq_length, load_in_4bit=True)
        room = (share - four.fixed_mib) * MIB // self.model.kv_bytes_per_token
        if self.fits(free_mib * MOST_OF_A_GPU):
            enough = math.ceil(20 * least / free_mib) / 20
            change = f"Set GPU_MEMORY_UTILIZATION to auto or {enough:g}."
        elif room < 512:
            change = f"Choose a smaller model: MODEL_NAME={TINY_THINKER} runs anywhere."
        elif not self.load_in_4bit:
            change = f"LOAD_IN_4BIT=true brings it to {four.total_mib:,} MiB."
        else:
            change = f"Lower MAX_SEQ_LENGTH to {int(room) // 256 * 256}."
        need = f"{least:,} MiB needed, {share:,.0f} MiB available"
        return f"Does not fit: {need}. {change}"

    def __str__(self) -> str:
        tokens = f"{self.concurrency} x {self.max_seq_length:,} tokens"
        cache = f"KV cache {self.kv_cache_mib:,} for {tokens}"
        parts = f"weights {self.weights_mib:,}, {cache}, other {self.overhead_mib:,}"
        return f"{self.model.name}: {self.total_mib:,} MiB ({parts})"


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
        most = f"a max_seq_length from 1 to {spec.context_length:,} tokens"
        given = f"{max_seq_length:,} and {concurrency}"
        raise ValueError(f"{spec.name} takes {most}, a concurrency from 1, not {given}")
    weights = math.ceil(spec.weight_bytes(load_in_4bit) / MIB)
    request = spec.kv_bytes_per_token * max_seq_length / MIB
    overhead = CPU_OVERHEAD_MIB if spec.is_embedded else GPU_OVERHEAD_MIB
    cache = math.ceil(concurrency * request)
    asked = (spec, max_seq_length, concurrency, load_in_4bit)
    return MemoryEstimate(*asked, weights, request, cache, overhead)
