"""The stop button, pressed in each way to generate that an engine has."""

from itertools import product
from pathlib import Path

import pytest
from child import run_child
from tiny_qwen3 import model_for_tests

WAYS = ("fast_generate", "run_batch", "step", "generate", "chat")


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory: Path = tmp_path_factory.mktemp("model")
    return run_child("stops", model_for_tests(directory))


@pytest.mark.parametrize(("first", "second"), list(product(WAYS, WAYS)))
def test_a_stop_ends_one_call_and_does_not_come_back(
    stops: dict, first: str, second: str
) -> None:
    stopped, left, found = stops[f"{first}, {second}"]
    assert stopped and left == 0
    assert found == [5, 5, 5]


def test_the_handler_is_put_back(stops: dict) -> None:
    assert stops["handler"]
