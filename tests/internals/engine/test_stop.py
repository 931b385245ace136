"""The stop button, pressed in each way to generate that an engine has."""

from itertools import product

import pytest
from child import run_child

WAYS = ("fast_generate", "run_batch", "step", "generate", "chat")


@pytest.fixture(scope="module")
def stops() -> dict:
    return run_child("stops")


@pytest.mark.parametrize(("first", "second"), list(product(WAYS, WAYS)))
def test_a_stop_ends_one_call_and_does_not_come_back(
    stops: dict, first: str, second: str
) -> None:
    stopped, left, found = stops[f"{first}, {second}"]
    assert stopped and left == 0
    assert found == [5, 5, 5]


def test_a_process_that_ignores_interrupts_goes_on_doing_so(stops: dict) -> None:
    """As one that a shell script has started in the background."""
    assert stops["ignored"] == [True] * len(WAYS)


def test_the_handler_is_put_back(stops: dict) -> None:
    assert stops["handler"]


def test_without_a_length_the_context_is_the_models_own(stops: dict) -> None:
    """As Unsloth takes `max_seq_length=None`, which the child loads with."""
    assert stops["context"] == 4096


def test_a_prompt_that_vllm_gives_up_says_what_to_correct(stops: dict) -> None:
    (error, none), other = stops["given_up"]
    assert "correct its structured_outputs" in error and none == 0
    assert other == [None, 5]
