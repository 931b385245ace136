"""Measure memory, watch it over time, and clean it up.

GPU figures come from NVML, the library behind `nvidia-smi`, so that they include other
processes and need no torch. Where there is no GPU, resident memory takes their place.
"""

import threading
import time
from dataclasses import dataclass
from itertools import pairwise

from .charts import Chart, new_axes
from .internals.engine.release import CleanupReport, free_unused_memory
from .internals.machine.devices import (
    GPU_MEMORY,
    current_gpu,
    list_gpus,
    measure_memory,
    measure_resident_memory,
    memory_kind,
)


class NoSuchGpuError(LookupError):
    """A GPU was asked for by an index that this machine does not have."""


def measure_gpu_memory(index: int | None = None) -> int:
    """MiB in use, by all processes together, on the GPU that this process uses.

    That is torch's current device once CUDA runs here, before that the first one in
    `CUDA_VISIBLE_DEVICES`. `index` names another one as `nvidia-smi` counts them,
    whatever is visible. 0 with no driver or no GPU to use; with an `index` that the
    machine does not have, `NoSuchGpuError`.
    """
    if index is not None:
        gpus = list_gpus(visible=False)
        parts = [gpu.used_mib for gpu in gpus if gpu.index == index]
        if not parts:
            known = ", ".join(sorted({str(gpu.index) for gpu in gpus})) or "none"
            raise NoSuchGpuError(f"There is no GPU {index}. GPUs here: {known}.")
        return sum(parts)  # the sum of its MIG slices, if any
    gpu = current_gpu()
    return gpu.used_mib if gpu else 0


def cleanup_memory() -> CleanupReport:
    """Collect garbage and hand cached memory back to the GPU or the system.

    What a variable still refers to stays: `del` it first. Imports no torch, and
    starts no CUDA context (some 500 MiB) where none runs.
    """
    kind, before = memory_kind(), measure_memory()
    free_unused_memory()
    return CleanupReport(kind, before, measure_memory())


@dataclass(frozen=True)
class Sample:
    """Memory in MiB at a time in seconds since the start; a mark has a label."""

    seconds: float
    mib: int
    label: str = ""


class MemoryMonitor:
    """Sample memory from a thread while something runs.

    Use it as a context manager, or over several cells with `start()` and `stop()`.
    `kind` is GPU_MEMORY, that of all processes on the GPU, or RESIDENT_MEMORY, that of
    this process and its children (default: the first where there is a GPU). An
    allocation shorter than `interval_s` (seconds) can pass unseen, except at a `mark`.
    """

    def __init__(self, interval_s: float = 0.2, kind: str | None = None) -> None:
        self.interval_s = interval_s
        self.kind = memory_kind() if kind is None else kind
        self.samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._started = 0.0

    def start(self) -> "MemoryMonitor":
        """Begin; a monitor records once. Raises `RuntimeError` the second time."""
        if self._thread is not None:
            raise RuntimeError("This monitor has run already: make a new one.")
        self._started = time.perf_counter()
        self._sample("start")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Take the last sample and end the thread; stopping twice does nothing."""
        if self._thread is None or self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join()
        self._sample("stop")

    def __enter__(self) -> "MemoryMonitor":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def mark(self, label: str) -> int:
        """Sample now under this name; returns the MiB in use."""
        if self._thread is None or self._stopping.is_set():
            raise RuntimeError("The monitor is not running: start it first.")
        return self._sample(label)

    @property
    def marks(self) -> list[Sample]:
        """The samples that have a label, "start" and "stop" among them."""
        return [sample for sample in self.samples if sample.label]

    @property
    def peak(self) -> int:
        """The highest sample in MiB; 0 before the start."""
        return max((sample.mib for sample in self.samples), default=0)

    def steps(self) -> list[tuple[str, int]]:
        """Each mark with the MiB that it stands above (or below) the mark before."""
        return [(b.label, b.mib - a.mib) for a, b in pairwise(self.marks)]

    def plot(self) -> Chart:
        """Memory over time, with a line at each mark; the steps are in its text."""
        axes = new_axes(8, 3)
        times = [sample.seconds for sample in self.samples]
        mib = [sample.mib for sample in self.samples]
        axes.fill_between(times, mib, alpha=0.25, linewidth=0)
        axes.plot(times, mib)
        for mark in self.marks:
            axes.axvline(mark.seconds, color="0.5", linestyle=":", linewidth=1)
        kind = self.kind[0].upper() + self.kind[1:]
        axes.set_title(f"{kind}, peak {self.peak:,} MiB")
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        steps = ", ".join(f"{label} {mib:+,} MiB" for label, mib in self.steps())
        return Chart(axes.figure, f"{axes.get_title()}. Steps: {steps or 'none'}.")

    def __repr__(self) -> str:
        count = len(self.samples)
        return f"MemoryMonitor({count} samples of {self.kind}, peak {self.peak} MiB)"

    def _watch(self) -> None:
        while not self._stopping.wait(self.interval_s):
            self._sample()

    def _sample(self, label: str = "") -> int:
        with self._lock:  # Keeps the samples in order of time.
            on_gpu = self.kind == GPU_MEMORY
            mib = measure_gpu_memory() if on_gpu else measure_resident_memory()
            seconds = time.perf_counter() - self._started
            self.samples.append(Sample(seconds, mib, label))
        return mib
