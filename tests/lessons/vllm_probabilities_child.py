"""Prints the probabilities of vLLM's own sampler, for logprobs and settings in JSON."""

import json
import sys
import types

from helpers.internals.machine.settings import load_settings

load_settings().apply()
import torch  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor  # noqa: E402
from vllm.v1.sample.logits_processor.interface import BatchUpdate  # noqa: E402
from vllm.v1.sample.ops.topk_topp_sampler import (  # noqa: E402
    apply_top_k_top_p_pytorch,
)

logprobs, settings = map(json.loads, sys.argv[1:])
scheduler = types.SimpleNamespace(max_num_seqs=1)
config = types.SimpleNamespace(scheduler_config=scheduler)
results = []
for values in settings:
    params = SamplingParams(**values)
    logits = torch.tensor([logprobs]) / params.temperature
    processor = MinPLogitsProcessor(config, torch.device("cpu"), False)
    processor.update_state(BatchUpdate(1, [], [(0, params, [], [])], []))
    logits = processor.apply(logits)
    k = torch.tensor([params.top_k]) if params.top_k > 0 else None
    p = torch.tensor([params.top_p]) if params.top_p < 1 else None
    logits = apply_top_k_top_p_pytorch(logits, k, p)
    results.append(logits.softmax(-1)[0].tolist())
print(json.dumps({"probabilities": results}))
