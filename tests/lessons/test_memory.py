import gc
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from child import find_child

from helpers.internals.engine.release import cleanup_memory
from helpers.internals.machine import devices
from helpers.internals.machine.devices import (
    MIB,
    list_gpus,
    measure_gpu_memory,
    measure_memory,
    measure_resident_memory,
    memory_kind,
)
from helpers.memory import MemoryMonitor


def test_a_gpu_that_torch_can_not_use_is_not_measured(nvml, monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert memory_kind() == cleanup_memory().kind == "resident memory"
    assert measure_gpu_memory() == 0 and measure_memory() > 0
    assert len(list_gpus()) == 3


def test_a_monitor_may_sample_while_torch_is_imported(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert measure_gpu_memory() == 1000


def test_resident_memory_counts_children():
    before = measure_resident_memory()
    with subprocess.Popen(
        [sys.executable, find_child("hold_memory")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        assert measure_resident_memory() >= before + 190
        child.communicate(b"\n")


@pytest.fixture
def no_automatic_collection():
    """Python's own collector can't come first."""
    gc.disable()
    yield
    gc.enable()


def test_cleanup_says_what_it_freed(no_driver, no_automatic_collection):
    cycle = [bytearray(b"x") * (200 * MIB)]
    cycle.append(cycle)
    del cycle
    report = cleanup_memory()
    assert report.kind == "resident memory"
    assert report.freed_mib >= 190
    assert str(report).startswith(f"Freed {report.freed_mib} MiB of resident memory (")
    assert report.after_mib == report.before_mib - report.freed_mib


def test_cleanup_imports_no_torch():
    output = subprocess.run(
        [sys.executable, find_child("cleanup")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout == "[]\n"


@pytest.mark.parametrize("initialized", [True, False])
def test_cleanup_empties_cuda_caches_only_where_cuda_runs(
    nvml, monkeypatch, initialized
):
    calls, uuid = [], nvml.cards[0].uuid[4:]

    def empty_cache():
        calls.append("empty_cache")
        nvml.cards[0].used = 400

    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: initialized,
        current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(uuid=uuid),
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=empty_cache,
        ipc_collect=lambda: calls.append("ipc_collect"),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    report = cleanup_memory()
    expected = ["synchronize", "empty_cache", "ipc_collect"] if initialized else []
    assert calls == expected
    assert (report.kind, report.freed_mib) == ("GPU memory", 600 * initialized)


def test_monitor_sees_an_allocation_between_marks(no_driver):
    with MemoryMonitor() as monitor:
        monitor.mark("before")
        block = bytearray(b"x") * (200 * MIB)
        monitor.mark("load")
        del block
        monitor.mark("del")
    steps = dict(monitor.steps())
    assert list(steps) == ["before", "load", "del", "stop"]
    assert 190 <= steps["load"] <= 260
    assert -260 <= steps["del"] <= -190
    assert monitor.peak >= monitor.marks[0].mib + 190
    seconds = [sample.seconds for sample in monitor.samples]
    assert seconds == sorted(seconds)


def test_monitor_samples_from_its_thread(nvml, monkeypatch):
    monitor = MemoryMonitor(interval_s=0.001)
    sample, sampled = monitor._take_sample, []

    def twice(label=""):
        nvml.cards[0].used = 5000 if not label else 1000
        sample(label)
        if not label:
            sampled.append(label)
            if len(sampled) == 2:
                monitor._stopping.set()

    monkeypatch.setattr(monitor, "_take_sample", twice)
    monitor.start()
    monitor._thread.join()
    assert monitor.kind == "GPU memory"
    assert [entry.mib for entry in monitor.samples] == [1000, 5000, 5000]
    assert monitor.peak == 5000


def test_monitor_ends_its_thread_after_an_error():
    with pytest.raises(ZeroDivisionError), MemoryMonitor() as monitor:
        raise ZeroDivisionError
    assert not monitor._thread.is_alive()
    assert monitor.marks[-1].label == "stop"


def test_monitor_runs_once():
    monitor = MemoryMonitor()
    assert monitor.peak == 0
    with pytest.raises(RuntimeError, match="start it first"):
        monitor.mark("early")
    monitor.stop()
    monitor.start()
    monitor.stop()
    monitor.stop()
    assert [mark.label for mark in monitor.marks] == ["start", "stop"]
    with pytest.raises(RuntimeError, match="make a new one"):
        monitor.start()
    with pytest.raises(RuntimeError, match="not running"):
        monitor.mark("late")


def test_plot_shows_marks_and_peak(nvml):
    with MemoryMonitor() as monitor:
        nvml.cards[0].used = 4000
        monitor.mark("load")
    chart = monitor.plot()
    (axes,) = chart.figure.axes
    assert "load +" in chart.text
    assert axes.get_title() == "GPU memory, peak 4,000 MiB"
    assert max(axes.lines[0].get_ydata()) == 4000
    assert len(axes.lines) == 1 + len(monitor.marks)


def test_measure_memory_is_resident_memory_without_a_gpu(no_driver, monkeypatch):
    monkeypatch.setattr(devices, "measure_resident_memory", lambda: 123)
    assert measure_memory() == 123


@pytest.fixture
def live(nvml):
    """A live monitor that samples at its marks alone; outside a notebook, as text."""
    monitor = MemoryMonitor(interval_s=60, live=True).start()
    yield monitor
    monitor.stop()


def test_a_live_view_draws_each_mark(live, nvml):
    nvml.cards[0].used = 3000
    assert live.mark("load <model>") == 3000
    nvml.cards[0].used = 500
    live.mark("release")
    html = live._live_view().html
    assert "GPU memory: 500 MiB after" in html and "3,000 at most" in html
    assert "<li>load &lt;model&gt;: +2,000 MiB</li><li>release: -2,500 MiB" in html
    points = re.search(r'<polyline points="([^"]+)"', html)[1]
    heights = [-float(point.split(",")[1]) for point in points.split()]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)
    assert heights[2] == pytest.approx(heights[0] / 2, rel=0.01)


def test_hours_of_samples_are_thinned_out(live):
    live.samples += live.samples[-1:] * 10_000
    live.mark("now")
    points = re.search(r'<polyline points="([^"]+)"', live._live_view().html)[1]
    assert 300 < len(points.split()) <= 402
