import itertools
from collections.abc import Sequence

import pytest

from helpers.speed import EngineFigures, measure_engine


def test_every_engine_gets_the_same_work_and_the_warm_up_is_left_out() -> None:
    calls = []

    def generate(prompts: Sequence[str], max_tokens: int) -> list[list[int]]:
        calls.append((list(prompts), max_tokens))
        return [[7] * max_tokens for _ in prompts]

    figures = measure_engine(
        "engine",
        generate,
        ["a", "b"],
        device="cpu",
        batch_sizes=(1, 3),
        max_tokens=5,
        repeats=2,
        load_seconds=1.5,
        memory_mib=20,
    )
    assert calls == [(["a"], 5)] * 3 + [(["a", "b", "a"], 5)] * 3 + [(["a"], 1)] * 3
    assert [len(v) for v in figures.tokens_per_second.values()] == [2, 2]
    assert len(figures.ttft_seconds) == 2
    assert (figures.load_seconds, figures.memory_mib) == (1.5, 20)


def test_the_clock_is_read_as_seconds_and_tokens(monkeypatch) -> None:
    # Each reading is half a second after the one before.
    ticks = itertools.count(0, 0.5)
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    figures = measure_engine(
        "engine",
        lambda prompts, n: [[0] * n for _ in prompts],
        ["a"],
        device="cpu",
        batch_sizes=(4,),
        max_tokens=10,
    )
    assert figures.ttft == 0.5
    assert figures.throughput(4) == 80


def test_an_engine_that_stops_early_is_not_measured() -> None:
    with pytest.raises(ValueError, match=r"1 x 8 tokens and returned \[3\]"):
        measure_engine(
            "engine",
            lambda prompts, n: [[0] * 3],
            ["a"],
            device="cpu",
            batch_sizes=(1,),
            max_tokens=8,
        )


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": []}, {"repeats": 0}, {"batch_sizes": ()}, {"batch_sizes": (0,)}],
)
def test_nothing_to_measure_is_an_error(wrong: dict) -> None:
    arguments = {"prompts": ["a"], "repeats": 1, "batch_sizes": (1,)} | wrong
    with pytest.raises(ValueError, match="at least one"):
        measure_engine("engine", lambda p, n: [], device="cpu", **arguments)


def test_the_median_stands_for_the_repeats() -> None:
    figures = EngineFigures("e", "cpu", (3.0, 1.0, 2.0), {1: (10.0, 90.0, 20.0)})
    assert figures.ttft == 2.0
    assert figures.throughput(1) == 20.0
    with pytest.raises(KeyError):
        figures.throughput(2)
