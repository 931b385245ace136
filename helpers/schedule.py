"""See vLLM's scheduler at work: what each step of the engine did for each request.

    with watch_schedule(model) as schedule:
        model.fast_generate(prompts, sampling_params)
    schedule.plot()

A step of the engine is one pass through the model. A request waits, has its prompt read
(prefill), then gets one token a step (decode), each step together with the others.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Schedule", "Step", "count_fixed_batches", "watch_schedule"]

Phase = Literal["waiting", "prefill", "decode"]
# Okabe and Ito's colours, told apart with any colour vision; no work is hatched.
_COLOURS = {
    "waiting": "#999999",
    "prefill": "#E69F00",
    "decode": "#0072B2",
    "idle": "#D55E00",
}
_HATCHES = {"waiting": "////", "idle": "...."}


@dataclass(frozen=True)
class Step:
    """One step: the phase of each unfinished request, by its number in the call.

    `tokens` went through the model in this step, those of prompts included.
    `blocks_used` of `blocks` blocks of the KV cache are in use, `seconds` counts from
    the first step on.
    """

    seconds: float
    phases: dict[int, Phase]
    tokens: int
    blocks_used: int
    blocks: int


@dataclass
class Schedule:
    """The steps of a generation; `slots` is how many requests may run at once."""

    slots: int = 0
    block_size: int = 0
    steps: list[Step] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests were seen."""
        return len({number for step in self.steps for number in step.phases})

    @property
    def idle_slots(self) -> int:
        """Slots that no request used, over all steps, while some request still ran."""
        return sum(self.slots - len(_at_work(step)) for step in self.steps)

    @property
    def peak_blocks(self) -> int:
        """The most blocks of the KV cache that were in use at once."""
        return max((step.blocks_used for step in self.steps), default=0)

    def decode_steps(self) -> list[int]:
        """For each request, in how many steps it got a token: its length, nearly."""
        counts = [0] * self.requests
        for step in self.steps:
            for number, phase in step.phases.items():
                counts[number] += phase == "decode"
        return counts

    def plot(self, axes: Any = None) -> Any:
        """A row for each request, a column for each step; returns matplotlib's axes."""
        axes = _axes(axes, height=1.2 + 0.22 * self.requests)
        for number in range(self.requests):
            for phase in ("waiting", "prefill", "decode"):
                spans = _spans([s.phases.get(number) == phase for s in self.steps])
                _draw(axes, number, phase, spans)
        return _finish(axes, len(self.steps), self.requests)

    def plot_blocks(self, axes: Any = None) -> Any:
        """Blocks of the KV cache in use after each step; returns matplotlib's axes."""
        axes = _axes(axes, height=2.6)
        used = [step.blocks_used for step in self.steps]
        axes.fill_between(range(len(used)), used, step="mid", color=_COLOURS["decode"])
        axes.set(xlabel="step of the engine", ylabel="blocks in use", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        return axes


@dataclass(frozen=True)
class FixedBatches:
    """The same requests in batches of a fixed size, each as long as its longest.

    `spans` are the first and the last step of each request, `batches` the first and
    the last of its batch: what lies between the two ends is idle.
    """

    slots: int
    spans: tuple[tuple[int, int], ...]
    batches: tuple[tuple[int, int], ...]

    @property
    def steps(self) -> int:
        """Steps of all batches together."""
        return max((end for _, end in self.batches), default=0)

    @property
    def idle_slots(self) -> int:
        """Slots without a request to work on, over all steps."""
        return self.slots * self.steps - sum(end - start for start, end in self.spans)

    def plot(self, axes: Any = None) -> Any:
        """The same picture as `Schedule.plot`, with the idle rest of each batch."""
        axes = _axes(axes, height=1.2 + 0.22 * len(self.spans))
        rows = zip(self.spans, self.batches, strict=True)
        for number, ((start, end), (first, last)) in enumerate(rows):
            _draw(axes, number, "waiting", [(0, first)])
            _draw(axes, number, "decode", [(start, end - start)])
            _draw(axes, number, "idle", [(end, last - end)])
        return _finish(axes, self.steps, len(self.spans))


def count_fixed_batches(lengths: Sequence[int], slots: int) -> FixedBatches:
    """What `generate` does with answers of these lengths, in tokens, `slots` at a time.

    A batch ends when its longest answer does; only then can the next one begin.
    """
    spans, batches, start = [], [], 0
    for first in range(0, len(lengths), slots):
        group = lengths[first : first + slots]
        end = start + max(group)
        spans += [(start, start + length) for length in group]
        batches += [(start, end)] * len(group)
        start = end
    return FixedBatches(slots, tuple(spans), tuple(batches))


@contextmanager
def watch_schedule(model: Any) -> Iterator[Schedule]:
    """Record each step of a model's vLLM engine while the block runs.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`. Raises
    `TypeError` where the engine is not in this process: a scheduler elsewhere can't be
    watched (VLLM_ENABLE_V1_MULTIPROCESSING=0 keeps it here).
    """
    engine = getattr(model, "vllm_engine", None) or model
    client = getattr(getattr(engine, "llm_engine", None), "engine_core", None)
    scheduler = getattr(getattr(client, "engine_core", None), "scheduler", None)
    if scheduler is None:
        raise TypeError(
            "no scheduler of vLLM in this process: load the model with "
            "fast_inference=True and VLLM_ENABLE_V1_MULTIPROCESSING=0"
        )
    pool = scheduler.kv_cache_manager.block_pool
    schedule = Schedule(scheduler.max_num_running_reqs, scheduler.block_size)
    numbers: dict[str, int] = {}
    started = time.perf_counter()
    inner = scheduler.schedule

    def observed(*args: Any, **kwargs: Any) -> Any:
        known = dict(scheduler.requests)
        done = {name: one.num_computed_tokens for name, one in known.items()}
        output = inner(*args, **kwargs)
        phases: dict[int, Phase] = {}
        for name, request in known.items():
            number = numbers.setdefault(name, len(numbers))
            if name not in output.num_scheduled_tokens:
                phases[number] = "waiting"
            elif done[name] < request.num_prompt_tokens:
                phases[number] = "prefill"
            else:
                phases[number] = "decode"
        if phases:
            schedule.steps.append(
                Step(
                    time.perf_counter() - started,
                    phases,
                    output.total_num_scheduled_tokens,
                    pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
                    pool.num_gpu_blocks - 1,  # One block is never given out.
                )
            )
        return output

    scheduler.schedule = observed
    try:
        yield schedule
    finally:
        del scheduler.schedule  # The class's own method again.


def _at_work(step: Step) -> list[int]:
    return [number for number, phase in step.phases.items() if phase != "waiting"]


def _spans(flags: list[bool]) -> list[tuple[int, int]]:
    """(first, length) of each run of true flags."""
    spans, place = [], 0
    for flag, run in itertools.groupby(flags):
        length = len(list(run))
        if flag:
            spans.append((place, length))
        place += length
    return spans


def _draw(axes: Any, row: int, kind: str, spans: list[tuple[int, int]]) -> None:
    """Bars of one kind in a row, from (first step, number of steps) each."""
    hatch = _HATCHES.get(kind)
    axes.broken_barh(
        spans,
        (row - 0.4, 0.8),
        facecolor="none" if hatch else _COLOURS[kind],
        edgecolor=_COLOURS[kind] if hatch else "none",
        hatch=hatch,
        linewidth=0,
        label="" if row else kind,
    )


def _axes(axes: Any, height: float) -> Any:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), layout="constrained").subplots()


def _finish(axes: Any, steps: int, rows: int) -> Any:
    axes.set(xlabel="step of the engine", ylabel="request", xlim=(0, steps))
    axes.set_ylim(rows - 0.5, -0.5)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return axes
