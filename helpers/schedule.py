"""See vLLM's scheduler at work: what each step of the engine did for each request.

A step of the engine is one pass through the model. A request waits, has its prompt read
(prefill), then gets one token a step (decode), each step together with the others.
`watch_schedule` records a real engine's steps; `Schedule.simulate` works them out.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .charts import COLOURS, Chart, new_axes
from .internals.engine.stop import engine_of

Phase = Literal["waiting", "prefill", "decode", "idle"]
# How each phase is drawn; no work is hatched.
_STYLES = {
    "waiting": {"facecolor": "none", "edgecolor": "#999999", "hatch": "////"},
    "prefill": {"facecolor": COLOURS[1]},
    "decode": {"facecolor": COLOURS[0]},
    "idle": {"facecolor": "none", "edgecolor": COLOURS[3], "hatch": "...."},
}


@dataclass(frozen=True)
class Step:
    """One step: the phase of each unfinished request, by its number in the call.

    `blocks_used` of `blocks` blocks of the KV cache are in use. `tokens` are computed;
    their requests have `context` tokens in the cache before.
    """

    phases: dict[int, Phase]
    blocks_used: int = 0
    blocks: int = 0
    tokens: int = 0
    context: int = 0


@dataclass
class Schedule:
    """The steps of a generation: at most `slots` requests and `budget` tokens in each.

    The KV cache has `blocks` blocks of `block_size` tokens.
    """

    slots: int = 0
    steps: list[Step] = field(default_factory=list)
    budget: int = 0
    blocks: int = 0
    block_size: int = 1

    @property
    def requests(self) -> int:
        """How many requests were seen."""
        return len({number for step in self.steps for number in step.phases})

    @property
    def idle_slots(self) -> int:
        """Slots that no request used, over all steps, while some request still ran."""
        phases = [phase for step in self.steps for phase in step.phases.values()]
        at_work = phases.count("prefill") + phases.count("decode")
        return self.slots * len(self.steps) - at_work

    @property
    def peak_blocks(self) -> int:
        """The most blocks of the KV cache that were in use at once."""
        return max((step.blocks_used for step in self.steps), default=0)

    def simulate(
        self, prompts: Sequence[int], answers: Sequence[int], **limits: int
    ) -> "Schedule":
        """Make the schedule that vLLM would, for prompts and answers of these lengths.

        `limits` replace those of this schedule. There is no prefix cache. Raises
        `ValueError` if the blocks are too few for one request.
        """
        new = replace(self, steps=[], **limits)
        queue, running = deque(range(len(prompts))), list[int]()
        done, written, free = [0] * len(prompts), [*prompts], new.blocks

        def blocks_of(tokens: int) -> int:
            return -(-tokens // new.block_size)

        while queue or running:
            phases, left, context, full = dict[int, Phase](), new.budget, 0, False
            while left:
                if len(phases) == len(running):
                    if full or not queue or len(running) == new.slots:
                        break
                    running.append(queue.popleft())
                number = running[len(phases)]
                held, count = done[number], min(written[number] - done[number], left)
                # To begin, a request needs blocks for all that it has.
                room = held + count if held else written[number]
                if blocks_of(room) - blocks_of(held) > free:
                    full = True  # The last to come gives its blocks back, and waits.
                    queue.appendleft(running.pop())
                    free += blocks_of(done[queue[0]])
                    done[queue[0]] = 0
                    continue
                phases[number] = "prefill" if held < prompts[number] else "decode"
                free -= blocks_of(held + count) - blocks_of(held)
                done[number], left, context = held + count, left - count, context + held
            if not phases:
                raise ValueError(f"{new.blocks} blocks are too few for one request")
            late = dict.fromkeys([*running[len(phases) :], *queue], "waiting")
            counts = (new.blocks - free, new.blocks, new.budget - left, context)
            new.steps.append(Step(phases | late, *counts))
            for number in phases:
                written[number] += done[number] == written[number]
                if written[number] - prompts[number] == answers[number]:
                    running.remove(number)
                    free += blocks_of(done[number])
        return new

    def plot(self, steps: int = 0) -> Chart:
        """Draw a row for each request and a column for each step.

        `steps` makes room for as many, so that two schedules can be compared.
        """
        axes = new_axes(8, 1.2 + 0.22 * self.requests)
        for phase, style in _STYLES.items():
            label = phase  # Once in the legend.
            for number in range(self.requests):
                now = [step.phases.get(number) == phase for step in self.steps]
                if any(now):
                    cells = [(place, 1) for place, here in enumerate(now) if here]
                    bar = {"yrange": (number - 0.4, 0.8), "linewidth": 0}
                    axes.broken_barh(cells, **bar, label=label, **style)
                    label = ""
        axes.set(ylabel="request", ylim=(self.requests - 0.5, -0.5))
        facts = (
            f"{self.requests} requests in {len(self.steps)} steps, at most "
            f"{self.slots} at once; {self.idle_slots} of "
            f"{self.slots * len(self.steps)} slots stay idle."
        )
        return self._chart(axes, facts, max(steps, len(self.steps)))

    def plot_blocks(self, reserved: int) -> Chart:
        """Draw the cache's blocks in use at each step, and a line at `reserved`."""
        axes = new_axes(8, 3.6)
        used = [step.blocks_used for step in self.steps]
        axes.stairs(used, fill=True, color=COLOURS[0], label="in use")
        line = {"color": COLOURS[3], "linestyle": "--"}
        axes.axhline(reserved, label="room for the longest", **line)
        axes.set(ylabel="blocks of the KV cache", ylim=(0, None))
        facts = f"At most {self.peak_blocks:,} blocks in use; room for the longest "
        facts += f"answer in each request would take {reserved:,}."
        return self._chart(axes, facts, len(self.steps))

    def _chart(self, axes: Any, facts: str, steps: int) -> Chart:
        axes.set_title(facts, fontsize=10)
        axes.set(xlabel="step of the engine", xlim=(0, steps))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return Chart(axes.figure, facts)


def count_fixed_batches(lengths: Sequence[int], slots: int) -> Schedule:
    """Make the schedule of `generate`: answers of these lengths, `slots` at a time.

    Lengths are in tokens. A batch ends when its longest answer does; only then can the
    next one begin.
    """
    schedule = Schedule(slots)
    for first in range(0, len(lengths), slots):
        batch = range(first, min(first + slots, len(lengths)))
        late = dict.fromkeys(range(batch.stop, len(lengths)), "waiting")
        for step in range(max(lengths[number] for number in batch)):
            at_work = "decode" if step else "prefill"
            phases = {n: at_work if step < lengths[n] else "idle" for n in batch}
            schedule.steps.append(Step(phases | late))
    return schedule


@contextmanager
def watch_schedule(model: Any, slots: int | None = None) -> Iterator[Schedule]:
    """Record each step of a model's vLLM engine while the block runs.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`. `slots` lets no
    more requests run at once in the block, which draws the waiting too. Raises
    `TypeError` where the engine is not in this process.
    """
    try:
        scheduler = engine_of(model).llm_engine.engine_core.engine_core.scheduler
    except AttributeError:
        wanted = "fast_inference=True and VLLM_ENABLE_V1_MULTIPROCESSING=0"
        raise TypeError(f"no engine in this process: load with {wanted}") from None
    pool = scheduler.kv_cache_manager.block_pool
    # How many may run at once; releases before 0.32 have one attribute for it.
    limit = "max_num_active_reqs"
    limit = limit if hasattr(scheduler, limit) else "max_num_running_reqs"
    most = getattr(scheduler, limit)
    setattr(scheduler, limit, min(slots or most, most))
    budget, size = scheduler.max_num_scheduled_tokens, scheduler.cache_config.block_size
    blocks = pool.num_gpu_blocks - 1  # One is never given out.
    schedule = Schedule(getattr(scheduler, limit), [], budget, blocks, size)
    decide, numbers = scheduler.schedule, {}

    def observed(*args: Any, **kwargs: Any) -> Any:
        known = dict(scheduler.requests)
        done = {name: one.num_computed_tokens for name, one in known.items()}
        output = decide(*args, **kwargs)
        tokens = output.num_scheduled_tokens
        phases: dict[int, Phase] = {}
        for name, one in known.items():
            # On a GPU vLLM plans a step while the one before it runs: a request still
            # holds its slot in the step after its last token.
            if done[name] >= one.num_prompt_tokens + one.max_tokens - 1:
                continue
            number = numbers.setdefault(name, len(numbers))
            at_work = "prefill" if done[name] < one.num_prompt_tokens else "decode"
            phases[number] = at_work if name in tokens else "waiting"
        if phases:
            counts = sum(tokens.values()), sum(done[name] for name in tokens)
            used = blocks - pool.get_num_free_blocks()
            schedule.steps.append(Step(phases, used, blocks, *counts))
        return output

    scheduler.schedule = observed
    try:
        yield schedule
    finally:
        del scheduler.schedule  # The class's own method again.
        setattr(scheduler, limit, most)
