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

MIB = 1024 * 1024

TINY_THINKER, SMOLLM2 = "tiny-thinker", "smollm2"
# Marks a model of random weights in its card; tools.random_model writes it.
NOISE_TAG = "random-weights"
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
    """One supported model.

    `sampling` is what its authors recommend, `sampling_source` says where; a hybrid
    model, which can think and need not, has `thinking_sampling` for when it does.
    """

    name: str
    licence: str
    parameters: int
    thinking: bool
    think_start: str | None = "<think>"
    think_end: str | None = "</think>"
    layers: int
    kv_heads: int = 8
    head_dim: int = 128
    embedding_parameters: int
    bytes_per_value: int = 2
    # Weights outside the embedding that a "4-bit" checkpoint keeps at 16 bits.
    kept_16bit_parameters: int = 0
    context_length: int
    smallest_gpu: str
    sampling: Mapping[str, float | int]
    sampling_source: str
    thinking_sampling: Mapping[str, float | int] | None = None

    @property
    def path(self) -> str:
        """What `from_pretrained` takes: a hub path, or an embedded model's folder."""
        return str(_EMBEDDED.get(self.name, self.name))

    @property
    def embedded(self) -> bool:
        """True for a model that needs no hub and no GPU; its weights have 32 bits."""
        return self.name in _EMBEDDED

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


QWEN3_THINKING_SAMPLING = MappingProxyType(
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
)

# huggingface.co/Qwen/Qwen3-4B, config.json; Qwen3-4B-Thinking-2507 has the same.
_QWEN3_4B = {
    "licence": "Apache-2.0",
    "parameters": 4_022_468_096,
    "layers": 36,
    "embedding_parameters": 151_936 * 2560,
    # Unsloth's dynamic quantisation leaves sensitive layers at 16 bits; a tenth of the
    # rest is an estimate.
    "kept_16bit_parameters": 360_000_000,
    "smallest_gpu": "8 GB",
}
_SPECS = (
    ModelSpec(
        name=TINY_THINKER,
        licence="Apache-2.0",
        # tools/tiny_thinker/train.py; a test holds these against the model's files.
        parameters=1_148_544,
        thinking=True,
        layers=4,
        kv_heads=2,
        head_dim=64,
        embedding_parameters=1280 * 128,
        bytes_per_value=4,
        context_length=4096,
        smallest_gpu="none",
        sampling=QWEN3_THINKING_SAMPLING,
        sampling_source="helpers/tiny_thinker/model/README.md",
    ),
    ModelSpec(
        name=SMOLLM2,
        licence="Apache-2.0",
        # huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json.
        parameters=134_515_008,
        thinking=False,
        think_start=None,
        think_end=None,
        layers=30,
        kv_heads=3,
        head_dim=64,
        embedding_parameters=49_152 * 576,
        bytes_per_value=4,
        context_length=8192,
        smallest_gpu="none",
        sampling=MappingProxyType({"temperature": 0.2, "top_p": 0.9}),
        sampling_source="model card of HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    ModelSpec(
        name="unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit",
        thinking=True,
        context_length=262_144,
        sampling=QWEN3_THINKING_SAMPLING,
        sampling_source="model card of Qwen/Qwen3-4B-Thinking-2507",
        **_QWEN3_4B,
    ),
    ModelSpec(
        name="unsloth/Ministral-3-3B-Reasoning-2512",
        licence="Apache-2.0",
        # huggingface.co/mistralai/Ministral-3-3B-Reasoning-2512, config.json: language
        # model of 3.4 billion, vision encoder and its projector of 0.4 billion.
        parameters=3_849_090_048,
        thinking=True,
        think_start="[THINK]",
        think_end="[/THINK]",
        layers=26,
        embedding_parameters=131_072 * 3072,
        kept_16bit_parameters=420_083_712,  # The vision encoder and its projector.
        context_length=262_144,
        smallest_gpu="8 GB in 4-bit, 12 GB in 16-bit",
        sampling=MappingProxyType({"temperature": 0.7, "top_p": 0.95}),
        sampling_source="vLLM recipes, Ministral-3-Reasoning; keep its system prompt",
    ),
    ModelSpec(
        name="unsloth/Qwen3-4B-unsloth-bnb-4bit",
        thinking=False,  # With enable_thinking=False; else it thinks.
        context_length=32_768,
        sampling=MappingProxyType(
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}
        ),
        sampling_source="model card of Qwen/Qwen3-4B, without thinking",
        thinking_sampling=QWEN3_THINKING_SAMPLING,
        **_QWEN3_4B,
    ),
    ModelSpec(
        name="unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
        licence="Llama 3.2 Community License",
        # huggingface.co/meta-llama/Llama-3.2-3B-Instruct, config.json.
        parameters=3_212_749_824,
        thinking=False,
        think_start=None,
        think_end=None,
        layers=28,
        embedding_parameters=128_256 * 3072,
        context_length=131_072,
        smallest_gpu="6 GB",
        sampling=MappingProxyType({"temperature": 0.6, "top_p": 0.9}),
        sampling_source="generation_config.json of meta-llama/Llama-3.2-3B-Instruct",
    ),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({s.name: s for s in _SPECS})


def get_model(name: str) -> ModelSpec:
    """The spec of a supported model; upper and lower case do not matter.

    Raises `UnknownModelError` with the nearest supported names.
    """
    wanted = str(name).strip().lower()
    for known, spec in MODELS.items():
        # People remember the last part of a hub path.
        if wanted in (known.lower(), known.lower().split("/")[-1]):
            return spec
    near = nearest_models(str(name))
    raise UnknownModelError(
        f"no supported model is called {name!r}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"Supported: {', '.join(MODELS)}."
    )


def whole_name(path: str) -> str:
    """A hub path without what marks it as quantised; other paths stay as they are."""
    return path if Path(path).is_dir() else _QUANTISED.sub("", path)


def cached_name(path: str) -> str | None:
    """The hub's name of what a path into the hub's cache leads to; else None."""
    found = _SNAPSHOT.search(path)
    return f"{found[1]}/{found[2]}" if found else None


def find_model(path: str) -> ModelSpec | None:
    """The supported model that a hub path, quantised or not, or a folder leads to."""
    path = cached_name(path) or path
    specs = MODELS.values()
    return next((s for s in specs if path in (s.path, s.path_16bit)), None)


def is_embedded(path: str) -> bool:
    """Whether a path is the folder of tiny-thinker or smollm2."""
    return path in map(str, _EMBEDDED.values())


def nearest_models(name: str) -> list[str]:
    """Up to two supported names that look like `name`, the nearest first."""
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
    def fixed_mib(self) -> int:
        """Weights and overhead, in MiB, whatever the requests are."""
        return self.weights_mib + self.overhead_mib

    @property
    def _request_mib(self) -> float:
        return self.model.kv_bytes_per_token * self.max_seq_length / MIB

    def fits(self, available_mib: float) -> bool:
        """Whether `available_mib` (MiB that the engine may take) is enough to load."""
        return self.smallest_mib <= available_mib

    def held_at_once(self, available_mib: float) -> int:
        """How many requests of full length fit in `available_mib`; vLLM queues more."""
        return max(0, int((available_mib - self.fixed_mib) // self._request_mib))

    def advice(self, free_mib: float, gpu_memory_utilization: float = 1.0) -> str:
        """One sentence: how many requests fit at once, or which value to change.

        `free_mib` are MiB of free memory, of which the engine takes the share
        `gpu_memory_utilization`. What is named first costs the least.
        """
        share = free_mib * gpu_memory_utilization
        if self.fits(share):
            return (
                f"Fits: {self.held_at_once(share):,} requests of "
                f"{self.max_seq_length:,} tokens at once in {share:,.0f} MiB; vLLM "
                "queues more."
            )
        need = (
            f"Does not fit: {self.smallest_mib:,} MiB needed, "
            f"{share:,.0f} MiB available"
        )
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
            f"{need}, and weights and overhead alone take "
            f"{self.fixed_mib:,} MiB. Choose a smaller model: "
            f"MODEL_NAME={TINY_THINKER} runs anywhere."
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

    `model` is a supported name or a spec, `max_seq_length` is in tokens (prompt and
    completion together), `concurrency` is how many sequences of that length are in
    flight at once. It is an upper bound for the KV cache: shorter sequences take less.

    Raises `UnknownModelError` for an unknown name, `ValueError` for lengths below 1 or
    past the model's context.
    """
    spec = model if isinstance(model, ModelSpec) else get_model(model)
    if max_seq_length < 1 or concurrency < 1:
        raise ValueError(
            "max_seq_length and concurrency must be at least 1, not "
            f"{max_seq_length} and {concurrency}"
        )
    if max_seq_length > spec.context_length:
        raise ValueError(
            f"{spec.name} has a context of {spec.context_length:,} tokens; "
            f"max_seq_length={max_seq_length:,} is more than that"
        )
    kv_bytes = spec.kv_bytes_per_token * max_seq_length * concurrency
    return MemoryEstimate(
        model=spec,
        max_seq_length=max_seq_length,
        concurrency=concurrency,
        load_in_4bit=load_in_4bit,
        weights_mib=math.ceil(spec.weight_bytes(load_in_4bit) / MIB),
        kv_cache_mib=math.ceil(kv_bytes / MIB),
        overhead_mib=CPU_OVERHEAD_MIB if spec.embedded else GPU_OVERHEAD_MIB,
    )


def is_noise(model_name: str | Path) -> bool:
    """Whether a model's card says that its text is noise.

    `model_name` is a directory, or any name: one that is no directory is not noise.
    """
    try:
        card = (Path(model_name).expanduser() / "README.md").read_text("utf-8")
    except OSError:
        return False
    metadata = card.partition("\n---")[0]
    return metadata.startswith("---") and NOISE_TAG in metadata
