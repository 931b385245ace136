"""Measure an engine's speed so that two engines can be compared fairly.

The rules: the same prompts and the same number of new tokens for everyone, a warm-up
that is not counted, several repeats of which the spread is kept.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Takes prompts and a number of new tokens, returns the new token ids of each prompt.
Generate = Callable[[Sequence[str], int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class EngineFigures:
    """What one engine did on one device.

    `load_seconds`: seconds of the load, or None where it was not measured.
    `memory_mib`: MiB that the load added, or None.
    `ttft_seconds`: seconds to the first token of one prompt, one value per repeat.
    `tokens_per_second`: by batch size (prompts at once), new tokens of the whole batch
    per second, one value per repeat.
    """

    engine: str
    device: str
    ttft_seconds: tuple[float, ...]
    tokens_per_second: Mapping[int, tuple[float, ...]]
    load_seconds: float | None = None
    memory_mib: float | None = None

    @property
    def ttft(self) -> float:
        """Median seconds to the first token."""
        return statistics.median(self.ttft_seconds)

    def throughput(self, batch_size: int) -> float:
        """Median tokens per second at `batch_size`; KeyError if it was not measured."""
        return statistics.median(self.tokens_per_second[batch_size])


def measure_engine(
    engine: str,
    generate: Generate,
    prompts: Sequence[str],
    *,
    device: str,
    batch_sizes: Sequence[int] = (1, 4, 16),
    max_tokens: int = 64,
    repeats: int = 3,
    load_seconds: float | None = None,
    memory_mib: float | None = None,
) -> EngineFigures:
    """Time `generate` on one prompt and on batches, `repeats` times after a warm-up.

    `generate(prompts, max_tokens)` has to return each prompt's new token ids, and to
    go on for `max_tokens` of them whatever the model says, or answers of different
    length would be compared. A batch larger than `prompts` takes them in turn again.

    Raises `ValueError` for no prompts, for `repeats` or a batch size below 1, and for
    a `generate` that returns fewer tokens than it was asked for.
    """
    if not prompts or repeats < 1 or min(batch_sizes, default=0) < 1:
        raise ValueError("prompts, repeats and batch sizes must be at least one")

    def timed(batch: Sequence[str], tokens: int) -> tuple[float, ...]:
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            completions = generate(batch, tokens)
            seconds.append(time.perf_counter() - start)
            lengths = [len(token_ids) for token_ids in completions]
            if lengths != [tokens] * len(batch):
                raise ValueError(
                    f"{engine} was asked for {len(batch)} x {tokens} tokens and "
                    f"returned {lengths}: switch off its end-of-text token"
                )
        return tuple(seconds[1:])  # The first one is the warm-up.

    throughput = {}
    for batch_size in batch_sizes:
        batch = list(itertools.islice(itertools.cycle(prompts), batch_size))
        tokens = batch_size * max_tokens
        throughput[batch_size] = tuple(tokens / s for s in timed(batch, max_tokens))
    return EngineFigures(
        engine=engine,
        device=device,
        ttft_seconds=timed(prompts[:1], 1),
        tokens_per_second=throughput,
        load_seconds=load_seconds,
        memory_mib=memory_mib,
    )
