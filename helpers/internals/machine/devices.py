"""The facts about GPUs and main memory, from NVML and psutil.

Nothing goes in but the environment's CUDA_VISIBLE_DEVICES; out come GPUs, the driver
and free memory, in MiB. It imports no torch and starts no CUDA. It knows nothing of
models and settings.
"""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pynvml

MIB = 1024 * 1024
GPU_MEMORY = "GPU memory"
RESIDENT_MEMORY = "resident memory"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it, as NVML sees it.

    `index` is the card's number in `nvidia-smi`. `compute_capability` is None if the
    driver does not tell it.
    """

    index: int
    uuid: str
    name: str
    total_mib: int
    used_mib: int
    compute_capability: tuple[int, int] | None

    @property
    def free_mib(self) -> int:
        """MiB that neither a process nor the driver holds."""
        return self.total_mib - self.used_mib

    @property
    def bf16(self) -> bool:
        """True if it computes in bfloat16: Ampere (8.0) and later do."""
        return self.compute_capability is not None and self.compute_capability >= (8, 0)


class Driver(NamedTuple):
    """The NVIDIA driver, and the newest CUDA that it runs as (major, minor).

    If it can't be used, `error` says why and `cuda` is (0, 0).
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    error: str = ""


class MainMemory(NamedTuple):
    """Main memory that this process may use, in MiB: all of it, and what is free."""

    total_mib: int
    available_mib: int


# --- GPUs -----------------------------------------------------------------------------


class _Card(NamedTuple):
    """What CUDA can use of a card: its MIG slices, or itself, or nothing."""

    uuid: str = ""
    gpus: list[Gpu] = []
    problem: str = ""


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()  # NVML counts: each init needs a shutdown.
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def read_driver() -> Driver:
    """Read the driver's version, and the newest CUDA that it runs."""
    try:
        with _nvml():
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return Driver(error=str(error))
    return Driver(version, (cuda // 1000, cuda % 1000 // 10))


def list_gpus(visible: bool = True) -> tuple[Gpu, ...]:
    """List the GPUs that CUDA shows this process, in its order; or all of the machine.

    Empty with no driver, no GPU, or a `CUDA_VISIBLE_DEVICES` that hides them all. That
    variable may name cards by their index in `nvidia-smi` (where cards of different
    kinds are mixed, set `CUDA_DEVICE_ORDER=PCI_BUS_ID`), cards and MIG slices by their
    whole UUID. A card in MIG mode is listed by its slices.
    """
    cards = _read_cards()
    return tuple(_visible_gpus(cards) if visible else _all_gpus(cards))


def gpu_problems() -> tuple[str, ...]:
    """Name each card of the machine that can't be used, and the reason."""
    return tuple(card.problem for card in _read_cards() if card.problem)


def _read_cards() -> list[_Card]:
    """Read each card of the machine, even unusable ones: an index is a place."""
    cards = []
    with contextlib.suppress(pynvml.NVMLError), _nvml():
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                cards.append(_read_card(index))
            except pynvml.NVMLError as error:
                cards.append(_Card(problem=f"GPU {index} can't be used: {error}"))
    return cards


def _read_card(index: int) -> _Card:
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    places = range(_query_or_none("MaxMigDeviceCount", card) or 0)
    slices = [_query_or_none("MigDeviceHandleByIndex", card, p) for p in places]
    # In a container some are out of reach, which are None here.
    parts = [part for part in slices if part is not None]
    mode = _query_or_none("MigMode", card)
    if not parts and mode and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        return _Card(problem=f"GPU {index} is in MIG mode, and no slice of it is here")
    gpus = [_describe_gpu(part, card, index) for part in parts or [card]]
    return _Card(pynvml.nvmlDeviceGetUUID(card), gpus)


def _query_or_none(name: str, *arguments: Any) -> Any:
    """Query one NVML property; return None if this device does not support it."""
    with contextlib.suppress(pynvml.NVMLError):
        return getattr(pynvml, f"nvmlDeviceGet{name}")(*arguments)
    return None


def _describe_gpu(handle: Any, card: Any, index: int) -> Gpu:
    """Describe a card, or the slice of it that `handle` stands for."""
    capability = _query_or_none("CudaComputeCapability", card)
    name = _query_or_none("Name", handle) or "NVIDIA GPU"
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    # Like nvidia-smi, version 2 does not count what the driver reserves.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    total, used = memory.total // MIB, memory.used // MIB
    return Gpu(index, uuid, name, total, used, capability and tuple(capability))


def _visible_gpus(cards: list[_Card]) -> list[Gpu]:
    """Choose as CUDA does by `CUDA_VISIBLE_DEVICES` (CUDA C++ Programming Guide, 5.2).

    The list ends at the first entry that names no GPU; one named twice hides all. If
    there is a MIG slice, CUDA shows the first one and nothing else (MIG User Guide,
    "CUDA Device Enumeration").
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = _all_gpus(cards)
    if variable is not None:
        by_name = {str(index): card.gpus for index, card in enumerate(cards)}
        by_name |= {gpu.uuid: [gpu] for gpu in chosen}
        by_name |= {card.uuid: card.gpus for card in cards}
        named = (by_name.get(entry.strip()) for entry in variable.split(","))
        chosen = list(chain.from_iterable(takewhile(bool, named)))
    if len(set(chosen)) < len(chosen):
        return []
    slices = [gpu for gpu in chosen if gpu.uuid.startswith("MIG-")]
    return slices[:1] or chosen


def _all_gpus(cards: list[_Card]) -> list[Gpu]:
    return [gpu for card in cards for gpu in card.gpus]


def current_gpu() -> Gpu | None:
    """Find the GPU that holds the models of this process; None for main memory.

    A GPU that the imported torch can't use (a CPU build, an old driver) does not count.
    """
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        return None
    gpus = list_gpus()
    if gpus and torch is not None and torch.cuda.is_initialized():
        # Only CUDA itself knows its order where cards of different kinds are mixed.
        current = torch.cuda.get_device_properties(torch.cuda.current_device())
        for gpu in gpus:
            if gpu.uuid.endswith(str(current.uuid)):  # After "GPU-" or "MIG-".
                return gpu
    return gpus[0] if gpus else None


# --- Main memory ----------------------------------------------------------------------


def main_memory(root: Path = Path("/")) -> MainMemory:
    """Read the machine's memory, or what this process's control groups leave of it.

    A container's limit is one: past it the process is killed, however much is free.
    `root` is the top of the file system.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return MainMemory(total // MIB, available // MIB)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each control group that this process is in.

    cgroups(7), version 2: the line 0::PATH of /proc/self/cgroup. In a container PATH
    may be the host's, which is not there; the top is then the container's own group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # Not Linux.
        return
    top = root / "sys/fs/cgroup"
    for path in (line[3:] for line in lines if line.startswith("0::")):
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit.
                    limit = int((group / "memory.max").read_text())
                    used = int((group / "memory.current").read_text())
                    statistics = (group / "memory.stat").read_text().split()
                    # Cached files: given up on demand.
                    cached = statistics[statistics.index("inactive_file") + 1]
                    yield limit, used - int(cached)


def free_memory_mib() -> int:
    """Read the free memory, in MiB: of the current GPU, else of the machine."""
    gpu = current_gpu()
    return gpu.free_mib if gpu else main_memory().available_mib


def measure_resident_memory() -> int:
    """Measure the main memory (RSS) of this process and its children, in MiB.

    Pages that they share are counted once for each.
    """
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # Ended meanwhile.
            total += process.memory_info().rss
    return total // MIB


def memory_kind() -> str:
    """Name the memory that `measure_memory` measures: GPU_MEMORY or RESIDENT_MEMORY."""
    return GPU_MEMORY if current_gpu() else RESIDENT_MEMORY


def measure_memory() -> int:
    """Measure the memory that models live in: the GPU's, or resident memory, in MiB."""
    gpu = current_gpu()
    return gpu.used_mib if gpu else measure_resident_memory()


# --- PyTorch, without importing it ----------------------------------------------------


def runs_cuda() -> bool:
    """Return True if PyTorch is built for CUDA and the driver can run that build."""
    built_for, (major, _) = torch_cuda(), read_driver().cuda
    # CUDA's minor version compatibility: only the major version has to fit.
    return bool(built_for) and major >= int(built_for.split(".")[0])


def torch_cuda() -> str | None:
    """Find the CUDA version that PyTorch is built for; None for a CPU build or none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    text = version_file.read_text() if version_file.exists() else ""
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None
