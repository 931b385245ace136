"""The facts about GPUs and main memory, from NVML and psutil, in MiB.

Only CUDA_VISIBLE_DEVICES goes in. It imports no torch, and starts no CUDA.
"""

import contextlib
import importlib.util
import os
import re
import sys
import warnings
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import psutil
import pynvml

MIB = 1024 * 1024
GPU_MEMORY = "GPU memory"
RESIDENT_MEMORY = "resident memory"


@dataclass(frozen=True)
class Gpu:
    """One GPU; `index` is its number in `nvidia-smi`."""

    index: int
    uuid: str
    name: str
    total_mib: int
    used_mib: int
    compute_capability: tuple[int, int]

    @property
    def free_mib(self) -> int:
        """MiB that neither a process nor the driver holds."""
        return self.total_mib - self.used_mib


def read_driver() -> tuple[str, tuple[int, int], str]:
    """Read the driver's version and its CUDA as (major, minor), or its error."""
    try:
        pynvml.nvmlInit()
        cuda = divmod(pynvml.nvmlSystemGetCudaDriverVersion_v2() // 10, 100)
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()  # NVML counts: each init needs one.
    except pynvml.NVMLError as error:
        return "", (0, 0), str(error)
    return version, cuda, ""


def list_gpus(visible: bool = True) -> tuple[Gpu, ...]:
    """List the GPUs that CUDA shows this process, in its order; or all of the machine.

    `CUDA_VISIBLE_DEVICES` may name them by their whole UUID or their index in
    `nvidia-smi` (cards of different kinds need `CUDA_DEVICE_ORDER=PCI_BUS_ID`). A card
    that is lost is left out; so is, with a warning, one in MIG mode.
    """
    gpus: list[Gpu] = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                gpus += _read_card(index)
        pynvml.nvmlShutdown()
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible or variable is None:
        return tuple(gpus)
    # CUDA's list ends at the first entry that names no GPU; one named twice hides all.
    known = {name: gpu for gpu in gpus for name in (str(gpu.index), gpu.uuid)}
    names = takewhile(known.__contains__, map(str.strip, variable.split(",")))
    shown = tuple(known[name] for name in names)
    return shown if len(set(shown)) == len(shown) else ()


def _read_card(index: int) -> list[Gpu]:
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    with contextlib.suppress(pynvml.NVMLError):  # Most cards have no MIG mode.
        if pynvml.nvmlDeviceGetMaxMigDeviceCount(card):
            warnings.warn(f"GPU {index} is left out: it is in MIG mode.", stacklevel=3)
            return []
    # Like nvidia-smi, version 2 does not count what the driver reserves.
    memory = pynvml.nvmlDeviceGetMemoryInfo(card, version=pynvml.nvmlMemory_v2)
    total, used = memory.total // MIB, memory.used // MIB
    uuid, name = pynvml.nvmlDeviceGetUUID(card), pynvml.nvmlDeviceGetName(card)
    capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(card))
    return [Gpu(index, uuid, name, total, used, capability)]


def current_gpu() -> Gpu | None:
    """Find the GPU that holds this process's models; None if torch can use none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # Not while torch loads.
    if cuda and not cuda.is_available():
        return None
    gpus = list_gpus()
    if cuda and cuda.is_initialized():
        # Only CUDA itself knows its order where cards of different kinds are mixed.
        current = cuda.get_device_properties(cuda.current_device())
        gpus = [gpu for gpu in gpus if gpu.uuid.endswith(str(current.uuid))] or gpus
    return gpus[0] if gpus else None


def main_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return main memory in MiB, all and free: the machine's or its control group's.

    Past the limit of a group (cgroups(7), version 2) or container a process is killed.
    """
    machine = psutil.virtual_memory()
    limits = [(machine.total, machine.available)]
    file = root / "proc/self/cgroup"
    own = re.search("^0::/(.*)", file.read_text(), re.M) if file.exists() else None
    # In a container this may be the host's, which is not there; the top then counts.
    folder = root / "sys/fs/cgroup" / (own[1] if own else "")
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit.
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            stat = (group / "memory.stat").read_text().split()
            used -= int(stat[stat.index("inactive_file") + 1])  # Given up on demand.
            limits.append((limit, max(0, limit - used)))
    total, free = map(min, zip(*limits, strict=True))
    return total // MIB, free // MIB


def free_memory_mib() -> int:
    """Read the free memory, in MiB: of the current GPU, else of the machine."""
    gpu = current_gpu()
    return gpu.free_mib if gpu else main_memory()[1]


def measure_gpu_memory() -> int:
    """Measure the MiB in use, by all processes, on the current GPU; 0 without one."""
    gpu = current_gpu()
    return gpu.used_mib if gpu else 0


def measure_resident_memory() -> int:
    """Measure the main memory (RSS) of this process and its children, in MiB."""
    this, total = psutil.Process(), 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # Ended meanwhile.
            total += process.memory_info().rss
    return total // MIB


def memory_kind() -> str:
    """Name the memory that models live in: GPU_MEMORY or RESIDENT_MEMORY."""
    return GPU_MEMORY if current_gpu() else RESIDENT_MEMORY


def measure_memory(kind: str = "") -> int:
    """Measure the memory of this kind, by default `memory_kind()`, in use, in MiB."""
    on_gpu = (kind or memory_kind()) == GPU_MEMORY
    return measure_gpu_memory() if on_gpu else measure_resident_memory()


def runs_cuda() -> bool:
    """Return True if PyTorch is built for CUDA and the driver can run that build."""
    built_for, (_, cuda, _) = torch_cuda(), read_driver()
    return bool(built_for) and cuda[0] >= int(built_for.split(".")[0])  # The major one.


def torch_cuda() -> str | None:
    """Find the CUDA version that PyTorch is built for; None for a CPU build or none."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text() if file and file.exists() else ""
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None
