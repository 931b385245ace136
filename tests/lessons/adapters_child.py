"""Answer with two adapters in one batch, and as Unsloth does with each alone."""

import importlib
import json
import sys

import torch

from helpers.internals.engine.release import release_model
from helpers.loading import FastLanguageModel
from helpers.sampling import preset

path, *adapters = sys.argv[1:]


def scores(model, prompt, tokens):
    """The log-probability of each token after the prompt, in transformers."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(tokens)[:, None]
    return logits.log_softmax(-1).gather(-1, chosen)[:, 0]


try:
    FastLanguageModel.from_pretrained("missing/model")
except Exception as error:
    not_here = str(error)
fixed = {"temperature": 0, "max_tokens": 24, "min_tokens": 24}
expected, judged = [], []
for seed, adapter in enumerate(adapters):
    model, tokenizer = FastLanguageModel.from_pretrained(
        path, max_seq_length=256, load_in_4bit=False, dtype="float32"
    )
    # Random matrices on both sides, and a large alpha: as it starts it has no effect.
    model = FastLanguageModel.get_peft_model(
        model, r=8, lora_alpha=256, init_lora_weights=False, random_state=seed
    )
    model.save_pretrained(adapter)
    FastLanguageModel.for_inference(model)
    ids = tokenizer("one", return_tensors="pt")
    tokens = model.generate(**ids, **preset("balanced", for_generate=True, **fixed))
    prompt = ids.input_ids[0].tolist()
    expected.append(tokens[0, len(prompt) :].tolist())
    judge = {"adapter": scores(model, prompt, expected[-1])}
    with model.disable_adapter():
        judge["base"] = scores(model, prompt, expected[-1])
    model.merge_adapter()
    judge["merged"] = scores(model, prompt, expected[-1])
    judged.append(judge)

model, tokenizer = FastLanguageModel.from_pretrained(
    path,
    max_seq_length=256,
    fast_inference=True,
    max_loras=2,
    block_size=64,
    num_gpu_blocks_override=48,
)
LoRARequest = importlib.import_module("vllm.lora.request").LoRARequest

requests = [None] + [
    LoRARequest(adapter, number, adapter)
    for number, adapter in enumerate(adapters, start=1)
]
params = preset("balanced", ignore_eos=True, logprobs=0, **fixed)
outputs = model.fast_generate(["one"] * 3, params, lora_request=requests)
found = [list(output.outputs[0].token_ids) for output in outputs]
gaps = []
for output, judge in zip(outputs[1:], judged, strict=True):
    entries = zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)
    own = torch.tensor([entry[token].logprob for entry, token in entries])
    gaps.append({who: (them - own).abs().max().item() for who, them in judge.items()})
mistaken = LoRARequest("third", 1, adapters[1])  # with the number of the first
cached = model.fast_generate(["one"], params, lora_request=mistaken)[0].outputs[0]
plain = model.fast_generate(["one"], params)[0].outputs[0].token_ids
config = model.vllm_engine.llm_engine.vllm_config.lora_config
cache = model.vllm_engine.llm_engine.vllm_config.cache_config
try:
    FastLanguageModel.from_pretrained(adapters[0], fast_inference=True)
except Exception as error:
    refused = str(error)
report = release_model(model)
print(
    json.dumps(
        {
            "released": [report.alive_parameters, report.holders],
            "same_as_generate": found[1:] == expected,
            "none_is_the_base": found[0] == list(plain),
            "gaps": gaps,
            "goes_by_number": list(cached.token_ids) == found[1],
            "different": len({tuple(tokens) for tokens in found}),
            "not_here": not_here,
            "refused": refused,
            "config": [config.max_loras, config.max_lora_rank],
            "cache": [cache.block_size, cache.num_gpu_blocks_override],
        }
    )
)
