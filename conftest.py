"""What pytest and nbmake need to know about this project."""

import os

import pytest

VARIABLE = "PYTEST_CURRENT_TEST"
# They take minutes, and wait much: begun last, each would keep one worker alone.
FIRST = ("test_scaling", "test_jupyterlab", "test_tiny_thinker")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of pytest-xdist's workers one thread and a place for Unsloth's code.

    Two engines with all cores each wait for one another's threads: ten times slower.
    Processes that write the same compiled modules read each other's half-written ones.
    """
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ[name] = "1"
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        compiled = config.cache.mkdir(f"unsloth_{worker}")
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(compiled)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with `FIRST`; all others keep their order."""
    items.sort(key=lambda item: item.path.stem not in FIRST)


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
