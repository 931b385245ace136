"""The panel without a page; on one: tests/browser/test_jupyterlab.py."""

import re

import pytest
from nvml_double import Nvml

from helpers.memory_panel import MemoryPanel


@pytest.fixture
def panel(nvml: Nvml) -> MemoryPanel:
    panel = MemoryPanel(interval_s=60).start()  # The marks alone.
    yield panel
    panel.stop()


def test_it_draws_what_a_monitor_sees_at_each_mark(panel, nvml) -> None:
    nvml.cards[0].used = 3000
    assert panel.mark("load <model>") == 3000
    nvml.cards[0].used = 500
    panel.mark("release")
    html = panel._view.value
    assert "GPU memory: 500 MiB after" in html and "3,000 at most" in html
    assert "<li>load &lt;model&gt;: +2,000 MiB</li><li>release: -2,500 MiB" in html
    points = re.search(r'<polyline points="([^"]+)"', html)[1]
    heights = [-float(point.split(",")[1]) for point in points.split()]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)
    assert heights[2] == pytest.approx(heights[0] / 2, rel=0.01)


def test_hours_of_samples_are_thinned_out(panel) -> None:
    panel.samples += panel.samples[-1:] * 10_000
    panel.mark("now")
    points = re.search(r'<polyline points="([^"]+)"', panel._view.value)[1]
    assert 300 < len(points.split()) <= 402
