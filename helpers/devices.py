"""The facts about GPUs and main memory, asked of NVML and psutil; imports no torch."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

MIB = 1024 * 1024


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML sees it; `index` is the one that `nvidia-smi` prints."""

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

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16: Ampere (8.0) and later do."""
        return self.compute_capability >= (8, 0)


def driver_error() -> str | None:
    """Why NVML can't be used (no driver, a broken one), or None where it can."""
    try:
        with _nvml():
            return None
    except pynvml.NVMLError as error:
        return str(error)


def list_gpus(visible: bool = True) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, in its order; or all of the machine.

    Empty with no driver, no GPU, or a `CUDA_VISIBLE_DEVICES` that hides them all.
    Indices in `CUDA_VISIBLE_DEVICES` are taken in PCI order, as `nvidia-smi` counts;
    where cards of different kinds are mixed, set `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    """
    try:
        with _nvml():
            handles = _visible_handles() if visible else _all_handles()
            return tuple(_describe(handle) for handle in handles)
    except pynvml.NVMLError:
        return ()


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()  # Counted: each needs its own shutdown.
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _all_handles() -> list[Any]:
    return [
        pynvml.nvmlDeviceGetHandleByIndex(index)
        for index in range(pynvml.nvmlDeviceGetCount())
    ]


def _visible_handles() -> list[Any]:
    """What CUDA makes of `CUDA_VISIBLE_DEVICES`: CUDA C++ Programming Guide, 5.2.

    The list ends at the first entry that names no GPU; one named twice hides all. A
    UUID may be shortened as long as it is unique.
    """
    handles = _all_handles()
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return handles
    by_uuid = {pynvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    chosen: dict[str, Any] = {}
    for entry in variable.split(","):
        entry = entry.strip()
        if entry.startswith("MIG-"):
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(entry)
            except pynvml.NVMLError:
                break
            uuid = entry
        elif entry.startswith("GPU-"):
            matches = [uuid for uuid in by_uuid if uuid.startswith(entry)]
            if len(matches) != 1:
                break
            uuid = matches[0]
            handle = by_uuid[uuid]
        elif entry.isdecimal() and int(entry) < len(handles):
            handle = handles[int(entry)]
            uuid = pynvml.nvmlDeviceGetUUID(handle)
        else:
            break
        if uuid in chosen:
            return []
        chosen[uuid] = handle
    return list(chosen.values())


def _describe(handle: Any) -> Gpu:
    try:
        try:  # Version 2 leaves out what the driver reserves, as nvidia-smi does.
            memory = pynvml.nvmlDeviceGetMemoryInfo(
                handle, version=pynvml.nvmlMemory_v2
            )
        except (
            pynvml.NVMLError_FunctionNotFound,
            pynvml.NVMLError_ArgumentVersionMismatch,
        ):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:  # It shares the machine's main memory.
        memory = psutil.virtual_memory()
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    if uuid.startswith("MIG-"):  # A slice has its own memory, all else is its card's.
        handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return Gpu(
        index=pynvml.nvmlDeviceGetIndex(handle),
        uuid=uuid,
        name=pynvml.nvmlDeviceGetName(handle),
        total_mib=memory.total // MIB,
        used_mib=memory.used // MIB,
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    )


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
            if gpu.uuid == f"GPU-{current.uuid}":
                return gpu
    return gpus[0] if gpus else None


def free_memory_mib() -> int:
    """Free memory, in MiB: of the current GPU, else of the machine."""
    gpu = current_gpu()
    return gpu.free_mib if gpu else psutil.virtual_memory().available // MIB


def runs_cuda() -> bool:
    """Whether PyTorch is built for CUDA and the driver is new enough for that build.

    Imports no torch and starts no CUDA.
    """
    built_for, driver = torch_cuda(), driver_cuda()
    # Within one major version of CUDA an older driver does (minor compatibility).
    return bool(built_for and driver and driver[0] >= int(built_for.split(".")[0]))


def torch_cuda() -> str | None:
    """The CUDA version that PyTorch is built for, None for a CPU build or none."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            text = (Path(folder) / "version.py").read_text()
            if found := re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE):
                return found[1]
    return None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver can run, as (major, minor)."""
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        finally:
            pynvml.nvmlShutdown()
        return version // 1000, version % 1000 // 10
    return None


def driver_version() -> str:
    pynvml.nvmlInit()
    try:
        return pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
