"""The scheduler of a real engine, watched; and fixed batches, counted."""

import pytest
from child import run_child

from helpers.schedule import Schedule, Step, count_fixed_batches, watch_schedule

LENGTHS = [5, 12, 3, 9, 7, 2, 14]


@pytest.fixture(scope="module")
def seen() -> dict:
    return run_child("schedule", str(LENGTHS))


@pytest.fixture(scope="module")
def schedule(seen: dict) -> Schedule:
    steps = [
        Step(**{**step, "phases": {int(k): v for k, v in step["phases"].items()}})
        for step in seen["steps"]
    ]
    return Schedule(seen["slots"], steps)


def test_nothing_is_recorded_after_the_block_and_the_engine_goes_on(seen):
    assert seen["recorded_after"] == 0
    assert seen["answers_after"] == 3


def test_each_request_waits_is_prefilled_once_and_decoded_to_its_length(schedule):
    assert {n for step in schedule.steps for n in step.phases} == {*range(len(LENGTHS))}
    for number, length in enumerate(LENGTHS):
        phases = [s.phases[number] for s in schedule.steps if number in s.phases]
        order = ["waiting", "prefill", "decode"]
        assert phases == sorted(phases, key=order.index)
        assert phases.count("prefill") == 1
        # The step that reads the prompt gives the first token.
        assert phases.count("decode") == length - 1


def test_a_finished_request_makes_room_for_the_next_in_the_same_step(schedule):
    for step in schedule.steps:
        waiting = list(step.phases.values()).count("waiting")
        assert len(step.phases) - waiting == 2 or not waiting
    fixed = count_fixed_batches(LENGTHS, slots=2)
    assert len(schedule.steps) < len(fixed.steps)
    assert schedule.idle_slots < fixed.idle_slots


def test_blocks_of_the_cache_are_given_back(schedule):
    used = [step.blocks_used for step in schedule.steps]
    assert 0 < max(used) <= schedule.steps[0].blocks
    assert used[-1] < max(used)


def test_fixed_batches_are_as_long_as_their_longest():
    fixed = count_fixed_batches([5, 12, 3], slots=2)
    assert len(fixed.steps) == 15
    assert fixed.idle_slots == 2 * 15 - (5 + 12 + 3)
    phases = [[step.phases.get(number) for step in fixed.steps] for number in range(3)]
    assert phases[0] == ["prefill"] + ["decode"] * 4 + ["idle"] * 7 + [None] * 3
    assert phases[1] == ["prefill"] + ["decode"] * 11 + [None] * 3
    assert phases[2] == ["waiting"] * 12 + ["prefill"] + ["decode"] * 2


def test_pictures_have_a_row_for_each_request(schedule):
    for drawn in (schedule, count_fixed_batches(LENGTHS, slots=2)):
        chart = drawn.plot(steps=200)
        (axes,) = chart.figure.axes
        assert axes.get_xlim() == (0, 200)
        assert axes.get_ylim() == (len(LENGTHS) - 0.5, -0.5)
        assert f"{drawn.idle_slots} of {2 * len(drawn.steps)} slots" in chart.text
        names = {text.get_text() for text in axes.get_legend().get_texts()}
        phases = {phase for step in drawn.steps for phase in step.phases.values()}
        assert names == phases


def test_blocks_are_drawn_below_what_would_be_reserved(schedule):
    chart = schedule.plot_blocks(reserved=99)
    (axes,) = chart.figure.axes
    assert axes.get_ylim()[1] > 99
    most = max(step.blocks_used for step in schedule.steps)
    assert f"At most {most} blocks" in chart.text


def test_an_engine_elsewhere_is_refused():
    with pytest.raises(TypeError, match="VLLM_ENABLE_V1_MULTIPROCESSING"):
        watch_schedule(object()).__enter__()


def test_simulated_steps_are_those_of_the_engine():
    """Phases, blocks and tokens of each step, with chunks of prompts and preemption."""
    found = run_child("simulated")
    assert found["preempted"] > 0
    assert [job for job in found["jobs"] if job[0] != job[1]] == []


def test_a_request_larger_than_the_cache_is_refused():
    engine = Schedule(slots=4, budget=64, blocks=3, block_size=16)
    assert len(engine.simulate([40], [9]).steps) == 9
    with pytest.raises(ValueError, match="3 blocks are too few"):
        engine.simulate([40], [10])
