"""Run batches on one engine: good ones, bad ones, interrupted ones, two at once."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import signal
import threading
import warnings

from helpers.batch import Batch, run_batch
from helpers.loading import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", max_seq_length=512, fast_inference=True
)
from vllm import SamplingParams  # noqa: E402

import helpers.internals.engine.sampling_params as sampling  # noqa: E402
from helpers.internals.batch.prompts import PromptSource  # noqa: E402
from helpers.models import MODELS, find_model  # noqa: E402

engine = model.vllm_engine
core = engine.llm_engine
seen, asked = [], []
enqueue_chat = engine.enqueue_chat
states = core.output_processor.request_states


def spying(messages, params, **kwargs):
    found = enqueue_chat(messages, params, **kwargs)
    seen.append([next(reversed(states.values())).prompt_token_ids, params])
    asked.append(kwargs["tokenization_kwargs"])
    return found


engine.enqueue_chat = spying
NAMES = ("temperature", "top_p", "top_k", "max_tokens", "seed")
result = {}


def as_dict(row):
    return dataclasses.asdict(row) | {"complete": row.complete}


def run(name, *args, **kwargs):
    printed = io.StringIO()
    del seen[:]
    with contextlib.redirect_stderr(printed), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        rows = run_batch(*args, **kwargs)
    result[name] = {
        "rows": list(map(as_dict, rows)),
        "truncated": [row.truncated for row in rows],
        "printed": printed.getvalue(),
        "ids": [ids for ids, _ in seen],
        "params": [{k: getattr(p, k) for k in NAMES} for _, p in seen],
        "texts": [tokenizer.decode(ids) for ids, _ in seen],
        "warnings": [str(warning.message) for warning in w],
    }


def error_of(*args, **kwargs):
    try:
        run_batch(model, *args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]


def user(content):
    return [{"role": "user", "content": content}]


greedy = SamplingParams(temperature=0, max_tokens=200)
untouched = copy.deepcopy(greedy)
good = ["What is 7 + 5?", "What is recursion?", "What is 12 + 23 + 34?", "hello"]
run("good", model, good, greedy, progress=False)

texts = [
    tokenizer.apply_chat_template(user(p), tokenize=False, add_generation_prompt=True)
    for p in good
]
result["direct"] = [
    tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=False)
    for output in model.fast_generate(texts, copy.deepcopy(greedy))
]

calls = [{"type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}]
kinds = [
    user(good[0]),
    {"id": "b", "prompt": good[1]},
    {"id": 3, "messages": user(good[2]), "sampling_params": {"max_tokens": 9}},
    {"prompt": good[3], "sampling_params": SamplingParams(max_tokens=1)},
    user([{"type": "text", "text": good[0]}]),
    user([{"type": "text", "text": "What is"}, "7 + 5?"]),
    [*user(good[0]), {"role": "assistant", "content": "The answer"}],
    [
        *user(good[0]),
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "12"},
    ],
    texts[0],
    {"prompt": good[0], "sampling_params": {"seed": "7", "temperature": 0.6}},
]
run("kinds", engine, kinds, greedy, tokenizer=tokenizer, progress=True)
run("zero", model, kinds[-1:], {"temperature": 0}, progress=False)
stop = {"temperature": 0, "stop": ["is w"]}
run("stop", model, good[1:2], stop, progress=False)
result["stop"]["text"] = (
    model.fast_generate(texts[1:2], SamplingParams(max_tokens=200, **stop))[0]
    .outputs[0]
    .text
)

bad = {
    "empty": "",
    "blank": user("  "),
    "no messages": [],
    "type": 5,
    "message": ["hello"],
    "content": user(5),
    "no content": [{"role": "user"}],
    "picture": user(["See", {"type": "image_url", "image_url": {"url": "a.png"}}]),
    "bytes": b"\xff",
    "surrogate": "hello \ud83d",
    "key": {"promt": "hello"},
    "both": {"prompt": "hello", "messages": user("bye")},
    "neither": {"id": 1},
    "long": "word " * 2000,
    "kwargs": {"prompt": "hello", "chat_template_kwargs": "off"},
} | {
    name: {"prompt": "hello", "sampling_params": params}
    for name, params in {
        "name": {"temprature": 1},
        "range": {"temperature": -1},
        "value": {"max_tokens": "many"},
        "params": "creative",
        "several": SamplingParams(n=2),
        "engine": {"logprobs": 3},
        "seed": {"seed": 1.5},
        "large seed": {"seed": 2**64},
        "object": SamplingParams(seed="seven"),
        "structured": {"structured_outputs": {"regex": "("}},
    }.items()
}
mixed = [
    prompt for pair in zip(bad.values(), good * 7, strict=False) for prompt in pair
]
run("mixed", model, mixed, greedy, progress=True)
result["bad"] = list(bad)
result["untouched"] = greedy == untouched
# What nobody checks before the engine does: the culprit alone is left without answer.
checked = sampling.sampling_params
sampling.sampling_params = lambda values: SamplingParams(**values)
culprit = {"prompt": "hello", "sampling_params": {"seed": "7", "temperature": 0.6}}
run("culprit", model, [*good[:3], culprit, good[3]], greedy, progress=False)
sampling.sampling_params = checked

digits = {"structured_outputs": {"regex": "[0-9]+"}, "max_tokens": 5}
run("digits", model, [{"prompt": good[0], "sampling_params": digits}], progress=False)
os.environ["CI"] = "true"
run("default", model, good[:1])
run("override", model, good[:1], {"max_tokens": 3}, progress=False)
run("empty", model, [], progress=False)

# Read as the engine needs them: a file of any length is not held in memory.
Batch.IN_FLIGHT, taken, most = 1, [0], 0
core.vllm_config.scheduler_config.max_num_seqs, whole = 4, 256


ended = []
source = PromptSource([good[n % 4] for n in range(600)])


def many():
    for prompt in source:
        taken[0] += 1
        yield prompt


for finished in Batch(model, {"max_tokens": 2}).run(many()):
    ended.append(finished.index)
    most = max(most, taken[0] - len(ended))
result["streamed"] = [sorted(ended) == list(range(600)), most]
Batch.IN_FLIGHT, core.vllm_config.scheduler_config.max_num_seqs = 2, whole

llama = copy.deepcopy(tokenizer)
llama.chat_template = "<|endoftext|>" + tokenizer.chat_template
result["start_token"] = tokenizer.convert_tokens_to_ids("<|endoftext|>")
run("llama", model, ["hello"], greedy, tokenizer=llama, progress=False)

several = copy.deepcopy(tokenizer)
several.chat_template = {"rag": tokenizer.chat_template, "tool_use": "{{ 1 / 0 }}"}
named = {"tokenizer": several, "chat_template_kwargs": {"chat_template": "rag"}}
own = {"prompt": "hello", "chat_template_kwargs": {"chat_template": "tool_use"}}
run("several", model, ["hello", own], greedy, progress=False, **named)

# A hybrid model as Qwen3-4B is: its template closes the thinking when told to.
hybrid = copy.deepcopy(tokenizer)
closed = "('' if enable_thinking | default(true) else '<think>\\n\\n</think>')"
hybrid.chat_template = tokenizer.chat_template.replace(
    "assistant\\n<think>\\n'", f"assistant\\n' + {closed}"
)
qwen = next(spec for spec in MODELS.values() if spec.thinking_sampling)
spec = dataclasses.replace(MODELS["tiny-thinker"], sampling=qwen.sampling)
spec = dataclasses.replace(spec, thinking_sampling=qwen.thinking_sampling)
sampling.find_model = lambda path: spec
ask = "What does </think> do?"
off = {"enable_thinking": False}
modes = [ask, {"prompt": ask, "chat_template_kwargs": off}]
short = {"max_tokens": 1}
run("hybrid", model, modes, short, tokenizer=hybrid, progress=False)
every = dict(chat_template_kwargs=off, tokenizer=hybrid)
run("hybrid off", model, modes[:1], short, progress=False, **every)
sampling.find_model = find_model

retries = [None, "1"]
for tries in retries:
    again = {"retry_truncated": tries, "progress": False}
    run(f"retry {tries}", model, good[:1], {"temperature": 0, "max_tokens": 9}, **again)

jobs = [Batch(model).job]
own, config = engine.get_tokenizer(), core.vllm_config
for owner, name, value in (
    (own, "chat_template", own.chat_template + " "),
    (config.load_config, "load_format", "dummy"),
    (config.model_config, "hf_overrides", {"rope_theta": 1.0}),
):
    before = getattr(owner, name)
    setattr(owner, name, value)
    jobs.append(Batch(model).job)
    setattr(owner, name, before)
result["jobs"] = [*jobs, Batch(model).job]

changed = copy.deepcopy(tokenizer)
changed.chat_template = None
result["errors"] = {
    "n": error_of(good, SamplingParams(n=2)),
    "name": error_of(good, {"temprature": 1}),
    "template": error_of(good, tokenizer=changed),
    "kwargs": error_of(good, chat_template_kwargs=5),
}

owner, name = core.output_processor, "process_outputs"
real, calls, errors = getattr(owner, name), [0], []


def signalling(*args, **kwargs):
    calls[0] += 1
    if calls[0] == 5:
        thread = threading.Thread(target=lambda: errors.append(error_of(good)))
        thread.start()
        thread.join()
    if calls[0] == 45:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args, **kwargs)


setattr(owner, name, signalling)
step = core.step
try:
    run("interrupted", model, good * 3, greedy, progress=False)
except KeyboardInterrupt as error:
    result["finished"] = list(map(as_dict, error.finished))
setattr(owner, name, real)
result["left"] = core.get_num_unfinished_requests()
result["same_step"] = core.step == step
result["two_at_once"] = errors
run("again", model, good, greedy, progress=False)
result["special"] = [one["add_special_tokens"] for one in asked]
print(json.dumps(result, default=str))
