"""Stop each way to generate in mid-run, then use each: what does the next one give?"""

import json
import os
import signal

from helpers.batch import run_batch
from helpers.loading import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", max_seq_length=None, fast_inference=True
)
from vllm import SamplingParams  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

engine = model.vllm_engine
core = engine.llm_engine
QUESTIONS = ["What is 7 + 5?", "What is recursion?", "hello"]
chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
ids = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, tokenize=True, return_dict=False
)
prompts = [{"prompt_token_ids": one} for one in ids]


def greedy(tokens):
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def counts(outputs):
    return [len(output.outputs[0].token_ids) for output in outputs]


def batch(tokens):
    results = run_batch(model, QUESTIONS, greedy(tokens), progress=False)
    return [result.tokens for result in results]


def steps(tokens):
    params = greedy(tokens)
    params.output_kind = RequestOutputKind.DELTA
    found = [0] * len(prompts)
    names = [str(place) for place in range(len(prompts))]
    try:
        for name, prompt in zip(names, prompts, strict=True):
            core.add_request(name, prompt, params)
        while core.has_unfinished_requests():
            for output in core.step():
                found[int(output.request_id)] += len(output.outputs[0].token_ids)
    finally:
        core.abort_request(names)
    return found


def generate(tokens):
    return counts(engine.generate(prompts, greedy(tokens), use_tqdm=False))


def fast_generate(tokens):
    return counts(model.fast_generate(prompts, greedy(tokens)))


def chat(tokens):
    return counts(engine.chat(chats, greedy(tokens), use_tqdm=False))


CALLS = {
    "fast_generate": fast_generate,
    "run_batch": batch,
    "step": steps,
    "generate": generate,
    "chat": chat,
}


def stopped(call, owner, name):
    """Whether a SIGINT at the fourth call of `owner.name` ends the call."""
    real, left = getattr(owner, name), [4]

    def signalling(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    setattr(owner, name, signalling)
    try:
        call(40)
    except KeyboardInterrupt:
        return True
    finally:
        setattr(owner, name, real)
    return False


# Before the model runs, and after it ran.
moments = [(core.engine_core, "get_output"), (core.output_processor, "process_outputs")]
result = {}
for first, stopped_call in CALLS.items():
    for place, (second, call) in enumerate(CALLS.items()):
        was_stopped = stopped(stopped_call, *moments[place % 2])
        left = core.get_num_unfinished_requests()
        try:
            found = call(5)
        except BaseException as error:
            found = repr(error)
        result[f"{first}, {second}"] = [was_stopped, left, found]
nothing_fits = {"structured_outputs": {"regex": r"[^\s\S]"}}
given_up = {"prompt": QUESTIONS[0], "sampling_params": nothing_fits}
results = run_batch(model, [given_up, QUESTIONS[0]], greedy(5), progress=False)
result["given_up"] = [(one.error, one.tokens) for one in results]
result["context"] = core.vllm_config.model_config.max_model_len
result["handler"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
signal.signal(signal.SIGINT, signal.SIG_IGN)
result["ignored"] = [not stopped(call, *moments[0]) for call in CALLS.values()]
print(json.dumps(result))
