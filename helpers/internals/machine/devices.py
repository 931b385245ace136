"""The facts about GPUs and main memory, asked of NVML and psutil; imports no torch."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pynvml

MIB = 1024 * 1024
GPU_MEMORY = "GPU memory"
RESIDENT_MEMORY = "resident memory"
# The files of a control group that hold its limit and use of memory, in bytes, and how
# memory.stat names the part of the use that is given up on demand.
_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it, as NVML sees it.

    `index` is the one that `nvidia-smi` prints, of a slice that of its card.
    `compute_capability` is None where the driver does not tell it.
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
        """Whether it computes in bfloat16: Ampere (8.0) and later do."""
        return self.compute_capability is not None and self.compute_capability >= (8, 0)


class Driver(NamedTuple):
    """The NVIDIA driver, and the newest CUDA that it runs as (major, minor).

    Where it can't be used `error` says why, and `cuda` is (0, 0).
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
    """A card, and what CUDA can use of it: its MIG slices, or itself, or nothing."""

    uuid: str
    gpus: list[Gpu]


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()  # NVML counts: each init needs a shutdown.
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def read_driver() -> Driver:
    """Which driver there is, and what it can run."""
    try:
        with _nvml():
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return Driver(error=str(error))
    return Driver(version, (cuda // 1000, cuda % 1000 // 10))


def list_gpus(visible: bool = True) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, in its order; or all of the machine.

    Empty with no driver, no GPU, or a `CUDA_VISIBLE_DEVICES` that hides them all.
    Indices in `CUDA_VISIBLE_DEVICES` are taken in PCI order, as `nvidia-smi` counts;
    where cards of different kinds are mixed, set `CUDA_DEVICE_ORDER=PCI_BUS_ID`. A card
    in MIG mode is listed by its slices. `gpu_problems` says which are left out.
    """
    cards, _ = _read_cards()
    return tuple(_visible(cards) if visible else _all(cards))


def gpu_problems() -> tuple[str, ...]:
    """Each card of the machine that can't be used, with the reason."""
    return tuple(_read_cards()[1])


def _read_cards() -> tuple[list[_Card], list[str]]:
    cards, problems = [], []
    with contextlib.suppress(pynvml.NVMLError), _nvml():
        for index in range(pynvml.nvmlDeviceGetCount()):
            problem = f"GPU {index} is in MIG mode, and no slice of it is here"
            try:
                card = _read_card(index)
            except pynvml.NVMLError as error:
                card, problem = _Card("", []), f"GPU {index} can't be used: {error}"
            cards.append(card)  # Even an unusable one, to keep the indices.
            problems += [] if card.gpus else [problem]
    return cards, problems


def _read_card(index: int) -> _Card:
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    places = range(_ask("MaxMigDeviceCount", card) or 0)
    slices = [_ask("MigDeviceHandleByIndex", card, place) for place in places]
    # In a container some are out of reach, which are None here.
    parts = [part for part in slices if part is not None]
    mode = _ask("MigMode", card)
    if not parts and (not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE):
        parts = [card]
    gpus = [_describe(part, card, index) for part in parts]
    return _Card(pynvml.nvmlDeviceGetUUID(card), gpus)


def _ask(what: str, *arguments: Any) -> Any:
    """What NVML tells of a device, None for what this one has not."""
    with contextlib.suppress(pynvml.NVMLError):
        return getattr(pynvml, f"nvmlDeviceGet{what}")(*arguments)
    return None


def _describe(handle: Any, card: Any, index: int) -> Gpu:
    """`handle` is the card's own, or that of one of its slices."""
    capability = _ask("CudaComputeCapability", card)
    name = _ask("Name", handle) or "NVIDIA GPU"
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    # Like nvidia-smi, version 2 does not count what the driver reserves.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    total, used = memory.total // MIB, memory.used // MIB
    return Gpu(index, uuid, name, total, used, capability and tuple(capability))


def _visible(cards: list[_Card]) -> list[Gpu]:
    """What CUDA makes of `CUDA_VISIBLE_DEVICES`: CUDA C++ Programming Guide, 5.2.

    The list ends at the first entry that names no GPU; one named twice hides all. A
    UUID may be shortened as long as it is unique. Where there is a MIG slice CUDA shows
    the first one and nothing else (MIG User Guide, "CUDA Device Enumeration").
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = _all(cards) if variable is None else []
    for entry in variable.split(",") if variable is not None else ():
        named = _named(entry.strip(), cards)
        if not named:
            break
        chosen += named
    if len(set(chosen)) < len(chosen):
        return []
    slices = [gpu for gpu in chosen if gpu.uuid.startswith("MIG-")]
    return slices[:1] or chosen


def _all(cards: list[_Card]) -> list[Gpu]:
    return [gpu for card in cards for gpu in card.gpus]


def _named(entry: str, cards: list[_Card]) -> list[Gpu]:
    """What an entry stands for, which is a card's index or the beginning of a UUID."""
    if entry.isdecimal():
        return cards[int(entry)].gpus if int(entry) < len(cards) else []
    by_uuid = {card.uuid: card.gpus for card in cards}
    by_uuid |= {gpu.uuid: [gpu] for gpu in _all(cards)}
    matches = [gpus for uuid, gpus in by_uuid.items() if uuid.startswith(entry)]
    is_uuid = entry.startswith(("GPU-", "MIG-"))
    return matches[0] if is_uuid and len(matches) == 1 else []


def current_gpu() -> Gpu | None:
    """The GPU that models of this process are on, None where they are in main memory.

    A GPU that the imported torch can't use (a CPU build, an old driver) is none.
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
    """The machine's, or what its control groups leave this process if that is less.

    A container's limit is one: past it the process is killed, however much is free.
    `root` is where the files of the system are.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return MainMemory(total // MIB, available // MIB)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that this process is in.

    cgroups(7): a line of /proc/self/cgroup is number:controllers:path, and version 2
    has no controllers. In a container that path may be the host's, which is not there;
    what is mounted at its beginning is then the container's own group.
    """
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            top, files = root / "sys/fs/cgroup", _CGROUP_V2
            if controllers:
                top, files = top / "memory", _CGROUP_V1
            if controllers and "memory" not in controllers.split(","):
                continue
            folder = top / path.strip("/")
            for group in (folder, *folder.parents):
                if group.is_relative_to(top):
                    with contextlib.suppress(OSError, ValueError):  # "max" is none.
                        limit, used = (int((group / f).read_text()) for f in files[:2])
                        statistics = (group / "memory.stat").read_text().split()
                        reclaimable = statistics[statistics.index(files[2]) + 1]
                        yield limit, used - int(reclaimable)


def free_memory_mib() -> int:
    """Free memory, in MiB: of the current GPU, else of the machine."""
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
    """Whether PyTorch is built for CUDA and the driver is new enough for that build."""
    built_for, (major, _) = torch_cuda(), read_driver().cuda
    # CUDA's minor version compatibility: only the major version has to fit.
    return bool(built_for) and major >= int(built_for.split(".")[0])


def torch_cuda() -> str | None:
    """The CUDA version that PyTorch is built for, None for a CPU build or none."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            text = (Path(folder) / "version.py").read_text()
            if found := re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE):
                return found[1]
    return None
