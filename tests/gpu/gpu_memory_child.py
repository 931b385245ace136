"""Load models one after the other, each released before the next; prints what is used.

The argument is a JSON list of arguments of `from_pretrained`. Memory is in MiB.
"""

import json
import sys
import weakref

from helpers.internals.engine.release import cleanup_memory, release_model
from helpers.internals.machine.devices import measure_gpu_memory

start = measure_gpu_memory()  # Importing unsloth may start CUDA.

from helpers.loading import FastLanguageModel  # noqa: E402

import torch  # noqa: E402 isort: skip
from vllm import SamplingParams  # noqa: E402 isort: skip

torch.zeros(1, device="cuda")
context = measure_gpu_memory() - start
prompts = [{"prompt_token_ids": list(range(300, 364))}] * 8
sampling = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
records = []
for load in json.loads(sys.argv[1]):
    before = measure_gpu_memory()
    model, tokenizer = FastLanguageModel.from_pretrained(fast_inference=True, **load)
    record = {"context": context, "load": measure_gpu_memory() - before}
    model.fast_generate(prompts, sampling)
    record["generate"] = measure_gpu_memory() - before
    cache = model.vllm_engine.llm_engine.vllm_config.cache_config
    record["pool_tokens"] = cache.num_gpu_blocks * cache.block_size
    engine = weakref.ref(model.vllm_engine)
    del model, tokenizer, cache
    record["del"] = measure_gpu_memory() - before
    cleanup_memory()
    record["cleanup"] = measure_gpu_memory() - before
    record["outlives del"] = engine() is not None
    if record["outlives del"]:
        report = release_model(engine(), before_load_mib=before)
        record["alive"], record["holders"] = report.alive_parameters, report.holders
        record["report"] = str(report)
    record["end"] = measure_gpu_memory() - before
    records.append(record)
    print(json.dumps(record), file=sys.stderr, flush=True)
print(json.dumps({"records": records}))
