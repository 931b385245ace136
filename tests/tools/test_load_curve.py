"""The arithmetic of the load curve; tests/lessons/test_serving.py has real servers."""

import pytest

from tools.load_curve import find_knee, predict


def test_clients_in_rounds_wait_for_all_prompts_and_their_own_steps():
    # 8 answers of 11 tokens in 0.5 s for the first token and 10 steps of 50 ms.
    assert predict(8, first=0.5, step=0.05, answer=11) == pytest.approx(88)


def test_the_knee_is_where_the_shared_time_is_half():
    rates = {n: n / (0.03 + 0.002 * n) for n in (1, 2, 4, 8, 16, 32, 64)}
    knee = find_knee(rates)
    assert knee == pytest.approx(15)
    assert knee / (0.03 + 0.002 * knee) == pytest.approx(0.5 / 0.002)  # half of all


def test_noise_moves_the_knee_by_no_more_than_itself():
    noise = {1: 1.1, 2: 0.9, 4: 1.1, 8: 0.9, 16: 1.1, 32: 0.9, 64: 1.0}
    rates = {n: by * n / (0.03 + 0.002 * n) for n, by in noise.items()}
    assert find_knee(rates) == pytest.approx(15, rel=0.3)
