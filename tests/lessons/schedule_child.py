"""Watch the scheduler of a real engine with two slots; print its steps as JSON."""

import json
import sys
from dataclasses import asdict

from helpers.loading import FastLanguageModel
from helpers.schedule import watch_schedule

lengths = json.loads(sys.argv[1])
model, _ = FastLanguageModel.from_pretrained("tiny-thinker", fast_inference=True)
from vllm import SamplingParams  # noqa: E402  Unsloth first.

params = [
    SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
    for length in lengths
]
with watch_schedule(model, slots=2) as schedule:
    model.fast_generate(["What is 2 + 2?"] * len(lengths), sampling_params=params)
seen = len(schedule.steps)
outputs = model.fast_generate(["Hello"] * 3, sampling_params=params[0])
print(
    json.dumps(
        {
            "slots": schedule.slots,
            "steps": [asdict(step) for step in schedule.steps],
            "recorded_after": len(schedule.steps) - seen,
            "answers_after": len(outputs),
        }
    )
)
