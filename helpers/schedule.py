"""See vLLM's scheduler at work: what each step of the engine did for each request.

A step of the engine is one pass through the model. A request waits, has its prompt read
(prefill), then gets one token a step (decode), each step together with the others.
`watch_schedule` records a real engine's steps; `Schedule.simulate` works them out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

from .charts import COLOURS, Chart, new_axes
from .internals.engine.stop import engine_of

Lengths = Sequence[int]  # in tokens
# The phases of a request, as they are drawn; no work is hatched.
_STYLES = {
    "waiting": {"facecolor": "none", "edgecolor": "#999999", "hatch": "////"},
    "prefill": {"facecolor": COLOURS[1]},
    "decode": {"facecolor": COLOURS[0]},
    "idle": {"facecolor": "none", "edgecolor": COLOURS[3], "hatch": "...."},
}


@dataclass(frozen=True)
class Step:
    """One step: the phase of each unfinished request, by its number in the call."""

    phases: dict[int, str]
    blocks_used: int = 0
    blocks: int = 0  # Of the KV cache, used or free.
    tokens: int = 0  # Computed in this step.
    context: int = 0  # In the cache before, of the requests that are computed.


@dataclass
class Schedule:
    """The steps of a generation, and the engine's limits."""

    slots: int = 0  # The most requests in a step.
    steps: list[Step] = field(default_factory=list)
    budget: int = 0  # The most tokens in a step.
    blocks: int = 0  # Of the KV cache.
    block_size: int = 1  # in tokens

    @property
    def idle_slots(self) -> int:
        """Slots that no request used, over all steps, while some request still ran."""
        phases = [phase for step in self.steps for phase in step.phases.values()]
        at_work = phases.count("prefill") + phases.count("decode")
        return self.slots * len(self.steps) - at_work

    def simulate(self, prompts: Lengths, answers: Lengths, **limits: int) -> "Schedule":
        """Make vLLM's schedule for these lengths, without a prefix cache.

        `limits` replace this schedule's. `ValueError`: a request needs too many blocks.
        """
        new = replace(self, steps=[], **limits)
        order, running = list(range(len(prompts))), 0  # The first of the order run.
        done, written, free = [0] * len(prompts), [*prompts], new.blocks

        def blocks_of(tokens: int) -> int:
            return -(-tokens // new.block_size)

        while order:
            planned, left, most = {}, new.budget, min(new.slots, len(order))
            while left and len(planned) < most:
                number = order[len(planned)]
                running = max(running, len(planned) + 1)
                held, count = done[number], min(written[number] - done[number], left)
                more = blocks_of(held + count) - blocks_of(held)
                # To begin, a request needs blocks for all that it has.
                if (more if held else blocks_of(written[number])) > free:
                    # The last to come gives its blocks back, and waits.
                    running = most = running - 1
                    free += blocks_of(done[order[running]])
                    done[order[running]] = 0
                else:
                    planned[number], left, free = count, left - count, free - more
            if not planned:
                raise ValueError(f"{new.blocks} blocks are too few for one request")
            phases = dict.fromkeys(order, "waiting")
            for n in planned:
                phases[n] = "prefill" if done[n] < prompts[n] else "decode"
            counts = new.budget - left, sum(done[n] for n in planned)
            new.steps.append(Step(phases, new.blocks - free, new.blocks, *counts))
            for number, count in planned.items():
                done[number] += count
                written[number] += done[number] == written[number]
                if written[number] - prompts[number] == answers[number]:
                    order.remove(number)
                    running -= 1
                    free += blocks_of(done[number])
        return new

    def plot(self, steps: int = 0) -> Chart:
        """Draw a row for each request, a column for each step, and room for `steps`."""
        rows = max((max(step.phases) + 1 for step in self.steps), default=0)
        axes = new_axes(8, 1.2 + 0.22 * rows)
        for phase, style in _STYLES.items():
            style = style | {"linewidth": 0, "label": phase}
            for row in range(rows):
                now = [step.phases.get(row) == phase for step in self.steps]
                cells = [(place, 1) for place, here in enumerate(now) if here]
                if cells:
                    axes.broken_barh(cells, (row - 0.4, 0.8), **style)
                    style["label"] = ""  # Once in the legend.
        axes.set(ylabel="request", ylim=(rows - 0.5, -0.5))
        slots = self.slots * len(self.steps)
        facts = f"{rows} requests in {len(self.steps)} steps, at most {self.slots} at "
        facts += f"once; {self.idle_slots} of {slots} slots stay idle."
        return self._chart(axes, facts, max(steps, len(self.steps)))

    def plot_blocks(self, reserved: int) -> Chart:
        """Draw the cache's blocks in use at each step, and a line at `reserved`."""
        axes, used = new_axes(8, 3.6), [step.blocks_used for step in self.steps]
        axes.stairs(used, fill=True, color=COLOURS[0], label="in use")
        axes.axhline(reserved, label="room for the longest", color=COLOURS[3], ls="--")
        axes.set(ylabel="blocks of the KV cache", ylim=(0, None))
        facts = f"At most {max(used, default=0):,} blocks in use; room for the longest "
        facts += f"answer in each request would take {reserved:,}."
        return self._chart(axes, facts, len(self.steps))

    def _chart(self, axes: Any, facts: str, steps: int) -> Chart:
        axes.set_title(facts, fontsize=10)
        axes.set(xlabel="step of the engine", xlim=(0, steps))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return Chart(axes.figure, facts)


def count_fixed_batches(lengths: Lengths, slots: int) -> Schedule:
    """Make `generate`'s schedule: the longest of `slots` answers ends their batch."""
    schedule = Schedule(slots)
    for first in range(0, len(lengths), slots):
        batch = dict(enumerate(lengths[first : first + slots], first))
        late = dict.fromkeys(range(first + slots, len(lengths)), "waiting")
        for step in range(max(batch.values())):
            work = "decode" if step else "prefill"
            phases = {n: work if step < batch[n] else "idle" for n in batch}
            schedule.steps.append(Step(phases | late))
    return schedule


@contextmanager
def watch_schedule(model: Any, slots: int | None = None) -> Iterator[Schedule]:
    """Record each step of a model's vLLM engine while the block runs.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`; `slots` are the
    most requests that may run at once. Raises `TypeError` for an engine elsewhere.
    """
    try:
        scheduler = engine_of(model).llm_engine.engine_core.engine_core.scheduler
    except AttributeError:
        wanted = "fast_inference=True and VLLM_ENABLE_V1_MULTIPROCESSING=0"
        raise TypeError(f"no engine in this process: load with {wanted}") from None
    # How many may run at once; releases before 0.32 have one attribute for it.
    limit = "max_num_active_reqs"
    limit = limit if hasattr(scheduler, limit) else "max_num_running_reqs"
    most = getattr(scheduler, limit)
    slots = min(slots or most, most)
    budget, size = scheduler.max_num_scheduled_tokens, scheduler.cache_config.block_size
    pool = scheduler.kv_cache_manager.block_pool
    blocks = pool.num_gpu_blocks - 1  # One is never given out.
    schedule = Schedule(slots, [], budget, blocks, size)
    decide, numbers = scheduler.schedule, dict[str, int]()

    def observed(*args: Any, **kwargs: Any) -> Any:
        known = dict(scheduler.requests)
        done = {name: one.num_computed_tokens for name, one in known.items()}
        output = decide(*args, **kwargs)
        tokens, phases = output.num_scheduled_tokens, dict[int, str]()
        for name, one in known.items():
            # On a GPU vLLM plans a step while the one before it runs: a request still
            # holds its slot in the step after its last token.
            if done[name] < one.num_prompt_tokens + one.max_tokens - 1:
                number = numbers.setdefault(name, len(numbers))
                work = "prefill" if done[name] < one.num_prompt_tokens else "decode"
                phases[number] = work if name in tokens else "waiting"
        if phases:
            counts = sum(tokens.values()), sum(done[name] for name in tokens)
            used = blocks - pool.get_num_free_blocks()
            schedule.steps.append(Step(phases, used, blocks, *counts))
        return output

    with patch.multiple(scheduler, schedule=observed, **{limit: slots}):
        yield schedule
