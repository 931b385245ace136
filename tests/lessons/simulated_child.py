"""Watch a real engine with few blocks do random jobs, and simulate each; print both."""

import json
import random
from dataclasses import astuple

from helpers.internals.machine.settings import load_settings
from helpers.models import TINY_THINKER_DIRECTORY
from helpers.schedule import Step, watch_schedule

load_settings().apply()
from vllm import LLM, SamplingParams  # noqa: E402  After the settings.

llm = LLM(
    str(TINY_THINKER_DIRECTORY),
    dtype="float32",
    enforce_eager=True,
    max_model_len=320,
    max_num_batched_tokens=320,
    num_gpu_blocks_override=41,
    block_size=32,
    enable_prefix_caching=False,
    disable_log_stats=False,
)
scheduler = llm.llm_engine.engine_core.engine_core.scheduler


def as_said(step: Step) -> list:
    """All of a step, with its requests in one order."""
    return [sorted(step.phases.items()), *astuple(step)[1:]]


numbers, jobs = random.Random(0), []
for _ in range(25):
    count = numbers.randrange(1, 20)
    prompts = [numbers.randrange(1, 200) for _ in range(count)]
    answers = [numbers.randrange(1, 100) for _ in range(count)]
    scheduler.max_num_scheduled_tokens = numbers.choice([16, 64, 200, 320])
    with watch_schedule(llm, numbers.choice([None, 2, 7])) as seen:
        llm.generate(
            [{"prompt_token_ids": [300 + n % 700] * n} for n in prompts],
            [SamplingParams(max_tokens=n, ignore_eos=True) for n in answers],
            use_tqdm=False,
        )
    both = [seen, seen.simulate(prompts, answers)]
    jobs.append([repr([as_said(step) for step in one.steps]) for one in both])
metrics = {one.name: one for one in llm.get_metrics()}
preempted = metrics["vllm:num_preemptions"].value
print(json.dumps({"jobs": jobs, "preempted": preempted}))
