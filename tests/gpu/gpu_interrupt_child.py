"""Press Ctrl-C in ten generations; prints after how many of them the engine worked."""

import json
import os
import signal
import threading

from helpers.loading import FastLanguageModel

from vllm import SamplingParams  # isort: skip

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", fast_inference=True, load_in_4bit=False, gpu_memory_utilization=0.1
)
questions = ["What is 15 + 27?", "What is a token?", "Which is larger, 41 or 14?"]
prompts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=False,
        add_generation_prompt=True,
    )
    for question in questions
]
short = SamplingParams(temperature=0, max_tokens=100)
endless = SamplingParams(temperature=1, max_tokens=1800, ignore_eos=True)


def answers() -> list[str]:
    return [output.outputs[0].text for output in model.fast_generate(prompts, short)]


expected = answers()
assert "42" in expected[0], expected
interrupted = right = 0
for attempt in range(10):
    seconds = 0.3 + 0.05 * attempt
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        model.fast_generate(prompts * 40, endless)
    except KeyboardInterrupt:
        interrupted += 1
        right += answers() == expected
    timer.join()
print(json.dumps({"interrupted": interrupted, "right": right}))
