"""Quantise the embedded model to the folder given, and ask vLLM a sum with the copy."""

import json
import sys
from pathlib import Path

from helpers.internals.machine.settings import load_settings
from helpers.models import TINY_THINKER
from tools.quantise import write_quantised

load_settings().apply()
folder = write_quantised(TINY_THINKER, Path(sys.argv[1]), group=32)

from vllm import LLM, SamplingParams  # noqa: E402 isort: skip

engine = LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=512)
chat = [{"role": "user", "content": "What is 15 + 27?"}]
(output,) = engine.chat(
    chat, SamplingParams(temperature=0, max_tokens=150), use_tqdm=False
)
print(json.dumps({"text": output.outputs[0].text}))
