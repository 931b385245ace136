"""What pytest and nbmake need to know about this project."""

import os

import pytest

VARIABLE = "PYTEST_CURRENT_TEST"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Start notebooks' kernels without pytest's own variable.

    ipykernel takes it for a reason to leave standard output without a file descriptor,
    and vLLM needs one when it starts on a GPU ("RuntimeError: fileno").
    """
    if not getattr(item, "nbmake", False):
        return
    runtest = item.runtest

    def runtest_without_variable() -> None:
        value = os.environ.pop(VARIABLE)
        try:
            runtest()
        finally:
            os.environ[VARIABLE] = value  # pytest takes it away itself.

    item.runtest = runtest_without_variable
