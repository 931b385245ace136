"""Load with fast_inference=True, and interrupt it wherever it can be."""

import gc
import json
import os
import signal
import sys
import types
from concurrent.futures import ThreadPoolExecutor

from helpers.loading import FastLanguageModel
from helpers.sampling import preset


def aliasing_is_an_error():
    return torch._functorch.config.error_on_custom_op_aliasing


torch, unsloth = sys.modules["torch"], sys.modules["unsloth"]
model, tokenizer = FastLanguageModel.from_pretrained(
    sys.argv[1], max_seq_length=512, load_in_4bit=True, fast_inference=True
)
FastLanguageModel.for_inference(model)
engine = model.vllm_engine
core = engine.llm_engine
result = {
    "engine": type(engine).__module__.split(".")[0],
    "unsloth": issubclass(FastLanguageModel, unsloth.FastLanguageModel),
    "blocked": sys.modules.get("vllm._C", False) is None,
    "needs_block": not torch.cpu._is_avx512_bf16_supported(),
    # Threads have settings of their own since torch 2.13.
    "aliasing_is_an_error": [
        aliasing_is_an_error(),
        ThreadPoolExecutor().submit(aliasing_is_an_error).result(),
    ],
    "takes_adapters": core.vllm_config.lora_config is not None,
}


def greedy(prompts, tokens=24):
    params = preset("balanced", temperature=0, max_tokens=tokens, ignore_eos=True)
    outputs = model.fast_generate(prompts, params)
    return [list(output.outputs[0].token_ids) for output in outputs]


before = greedy(["one", "two"])
ids = tokenizer("one", return_tensors="pt")
tokens = model.generate(
    **ids,
    **preset(
        "balanced", for_generate=True, temperature=0, max_tokens=24, min_tokens=24
    ),
)[0, ids.input_ids.shape[1] :].tolist()
result["same_as_generate"] = tokens == before[0]


def signal_at(owner, name, call):
    real, calls = getattr(owner, name), [0]

    def signalling(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    setattr(owner, name, signalling)
    return lambda: setattr(owner, name, real)


# As prompts are queued, in the middle of a step, after the model ran, at the very end.
places = [
    (core, "add_request", 3),
    (core.engine_core, "get_output", 4),
    (core.output_processor, "process_outputs", 4),
    (core.output_processor, "process_outputs", 400),
]
result["interrupted"], result["after"] = [], []
for owner, name, call in places:
    restore = signal_at(owner, name, call)
    try:
        greedy([f"number {n}" for n in range(6)], tokens=400)
        result["interrupted"].append(False)
    except KeyboardInterrupt:
        result["interrupted"].append(True)
    restore()
    result["after"].append(greedy(["one", "two"]) == before)
result["handler_restored"] = (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
)


def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]


# More prompt tokens than one step takes, so that one prompt would be cut in two.
prompts = [{"prompt_token_ids": [5 + n] * 100} for n in range(50)]
seeded = model.fast_generate(prompts, preset("balanced", seed=1, max_tokens=2))
result["seeded"] = len(seeded)
result["step_tokens"] = core.vllm_config.scheduler_config.max_num_batched_tokens
result["too_long"] = error_of(
    lambda: model.fast_generate({"prompt_token_ids": [5] * 600})
)
result["after"].append(greedy(["one", "two"]) == before)
kept = [one for one in gc.get_referrers(model) if isinstance(one, types.FrameType)]
files = [frame.f_code.co_filename for frame in kept]
result["frames"] = [file for file in files if file.endswith("loading.py")]
print(json.dumps(result))
