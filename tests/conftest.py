"""Fixtures that several modules of tests use."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pynvml
import pytest
from nvml_double import Card, Nvml

from helpers.internals.machine.settings import VARIABLES
from tools.browser import HOW_TO_GET_CHROMIUM, find_chromium, launch


@pytest.fixture
def nvml(monkeypatch):
    """Three cards with 1000, 2000 and 3000 MiB in use; no torch, nothing set."""
    state = Nvml(
        [
            Card("GPU-aaaa1111-0000-0000-0000-000000000000", 1000, name="Double 0"),
            Card("GPU-aaaa2222-0000-0000-0000-000000000000", 2000, name="Double 1"),
            Card("GPU-bbbb3333-0000-0000-0000-000000000000", 3000, name="Double 2"),
        ]
    )
    state.cards[2].capability = (7, 5)

    def count(step: int) -> None:
        state.open += step

    monkeypatch.setattr(pynvml, "nvmlInit", partial(count, 1))
    monkeypatch.setattr(pynvml, "nvmlShutdown", partial(count, -1))
    for name in state.answers():
        monkeypatch.setattr(pynvml, name, partial(state.answer, name))
    for variable in ("CUDA_VISIBLE_DEVICES", *VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # It may see no GPU.
    yield state
    assert state.open == 0, "every nvmlInit needs its nvmlShutdown"


@pytest.fixture
def no_driver(monkeypatch):
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", init)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; a test that needs it is skipped where there is none.

    Under CI that is a failure.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    if find_chromium() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW_TO_GET_CHROMIUM)
    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        yield browser
        browser.close()
