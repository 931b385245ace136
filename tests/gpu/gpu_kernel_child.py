"""What a kernel runs before it loads an engine: imports, and a CUDA context."""

from helpers.internals.machine.settings import load_settings

load_settings().apply()

from helpers.kernel import shutdown_kernel  # noqa: E402, F401
from helpers.loading import FastLanguageModel  # noqa: E402
from helpers.models import TINY_THINKER_DIRECTORY  # noqa: E402

import torch  # noqa: E402 isort: skip
from vllm import LLM, SamplingParams  # noqa: E402 isort: skip

torch.zeros(1, device="cuda")
PROMPT, PARAMS = "What is 2 + 2?", SamplingParams(max_tokens=8)


def load_in_kernel() -> None:
    global model
    model, _ = FastLanguageModel.from_pretrained(
        "tiny-thinker",
        fast_inference=True,
        load_in_4bit=False,
        enforce_eager=True,
        gpu_memory_utilization=0.02,
    )
    model.fast_generate(PROMPT, PARAMS)


def load_in_child() -> None:
    """Fixed room for the cache: engines that load at once can't profile the memory."""
    global model
    model = LLM(
        str(TINY_THINKER_DIRECTORY),
        enforce_eager=True,
        max_model_len=2048,
        gpu_memory_utilization=0.02,
        kv_cache_memory_bytes=2**30,
    )
    model.generate(PROMPT, PARAMS)
