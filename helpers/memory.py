"""Measure GPU memory, watch it over time, and give it back.

GPU figures come from NVML, the library behind `nvidia-smi`, so that they include other
processes and need no torch. Where there is no GPU, resident memory takes their place.
"""

import contextlib
import ctypes
import gc
import inspect
import os
import sys
import threading
import time
import types
import weakref
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

MIB = 1024 * 1024
GPU_MEMORY = "GPU memory"
RESIDENT_MEMORY = "resident memory"
# CUDA's caches and allocator rounding; less than this apart counts as given back.
TOLERANCE_MIB = 64
# The garbage collector does not see the variables of functions that are running.
UNSEEN_HOLDER = "a local variable of a function that is still running"


class NoSuchGpuError(LookupError):
    """A GPU was asked for by an index that this machine does not have."""


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


def measure_gpu_memory(index: int | None = None) -> int:
    """MiB in use, by all processes together, on the GPU that this process uses.

    That is torch's current device once CUDA runs here, before that the first one in
    `CUDA_VISIBLE_DEVICES`. `index` names another one as `nvidia-smi` counts them,
    whatever is visible. 0 with no driver or no GPU to use; with an `index` that the
    machine does not have, `NoSuchGpuError`.
    """
    if index is not None:
        gpus = {gpu.index: gpu for gpu in list_gpus(visible=False)}
        if index not in gpus:
            known = ", ".join(map(str, gpus)) or "none"
            raise NoSuchGpuError(f"There is no GPU {index}. GPUs here: {known}.")
        return gpus[index].used_mib
    gpu = current_gpu()
    return gpu.used_mib if gpu else 0


def measure_resident_memory() -> int:
    """MiB of main memory that this process and its children hold (RSS).

    Pages that they share are counted once for each.
    """
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # Ended meanwhile.
            total += process.memory_info().rss
    return total // MIB


def memory_kind() -> str:
    """What `measure_memory` measures here: `GPU_MEMORY` or `RESIDENT_MEMORY`."""
    return GPU_MEMORY if current_gpu() else RESIDENT_MEMORY


def measure_memory() -> int:
    """MiB in use where models live: on the GPU, or in main memory with none."""
    gpu = current_gpu()
    return gpu.used_mib if gpu else measure_resident_memory()


@dataclass(frozen=True)
class CleanupReport:
    """What a cleanup gave back, in MiB of `kind`, and the objects it collected."""

    kind: str
    before_mib: int
    after_mib: int
    collected: int

    @property
    def freed_mib(self) -> int:
        """MiB given back; negative where something else took memory meanwhile."""
        return self.before_mib - self.after_mib

    def __str__(self) -> str:
        return (
            f"Freed {self.freed_mib} MiB of {self.kind} "
            f"({self.before_mib} -> {self.after_mib} MiB)."
        )

    __repr__ = __str__


def cleanup_memory() -> CleanupReport:
    """Collect garbage and hand cached memory back to the GPU or the system.

    What a variable still refers to stays: `del` it first. Imports no torch, and
    starts no CUDA context (some 500 MiB) where none runs.
    """
    kind, before = memory_kind(), measure_memory()
    collected = _collect_garbage()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return CleanupReport(kind, before, measure_memory(), collected)


def _collect_garbage() -> int:
    """Collect until nothing more comes; the number of objects that were collected.

    A tensor that another one is a view of is seen as garbage only once that is gone.
    """
    total = 0
    for _ in range(5):
        collected = gc.collect()
        total += collected
        if not collected:
            break
    return total


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
        self._thread = threading.Thread(
            target=self._watch, name="memory-monitor", daemon=True
        )
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
        marks = self.marks
        return [
            (mark.label, mark.mib - previous.mib)
            for previous, mark in zip(marks, marks[1:], strict=False)
        ]

    def plot(self, axes: Any = None) -> Any:
        """Draw memory over time with the marks; returns the matplotlib axes.

        Each stretch between two marks has a colour of its own. The names stand above
        it in the order of the marks, also where these are too close to be told apart.
        """
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.subplots(figsize=(8, 4), layout="constrained")[1]
        marks = self.marks
        end = self.samples[-1].seconds if self.samples else 0.0
        for number, (left, right) in enumerate(zip(marks, marks[1:], strict=False)):
            part = [
                s for s in self.samples if left.seconds <= s.seconds <= right.seconds
            ]
            axes.fill_between(
                [sample.seconds for sample in part],
                [sample.mib for sample in part],
                color=f"C{number % 10}",
                alpha=0.25,
                linewidth=0,
            )
        axes.plot(
            [sample.seconds for sample in self.samples],
            [sample.mib for sample in self.samples],
            color="0.25",
            linewidth=1.5,
        )
        named = [mark for mark in marks[1:] if mark.label != "stop"]
        places = _spread([mark.seconds for mark in named], 0.0, end, end / 9)
        for mark, place in zip(named, places, strict=True):
            axes.axvline(mark.seconds, color="0.5", linestyle=":", linewidth=1)
            axes.annotate(
                f"{mark.label}\n{mark.mib:,}",
                (mark.seconds, 1),
                xycoords=("data", "axes fraction"),
                xytext=(place, 1.1),
                textcoords=("data", "axes fraction"),
                arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 1},
                ha="center",
                va="bottom",
                fontsize=9,
            )
        kind = self.kind[0].upper() + self.kind[1:]
        axes.set_title(f"{kind}, peak {self.peak:,} MiB", pad=48)
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        axes.margins(x=0.02)
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    def __repr__(self) -> str:
        return (
            f"MemoryMonitor({len(self.samples)} samples of {self.kind}, "
            f"peak {self.peak} MiB)"
        )

    def _watch(self) -> None:
        while not self._stopping.wait(self.interval_s):
            self._sample()

    def _sample(self, label: str = "") -> int:
        with self._lock:  # Samples stay in the order of their times.
            mib = (
                measure_gpu_memory()
                if self.kind == GPU_MEMORY
                else measure_resident_memory()
            )
            seconds = time.perf_counter() - self._started
            self.samples.append(Sample(seconds, mib, label))
        return mib


def _spread(wanted: list[float], low: float, high: float, gap: float) -> list[float]:
    """Places near the wanted ones, in their order, at least `gap` apart.

    They stay between `low` and `high` where there is room for all of them.
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else max(place, low))
    limit = high
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places


@dataclass(frozen=True)
class ReleaseReport:
    """What `release_model` gave back, in MiB of `kind`, and what it could not.

    `alive_parameters` of the model's `parameters` could not be freed because of what
    `holders` names. `kept_mib` is how far memory stands above its level before the
    load, where that was given.
    """

    kind: str
    before_mib: int
    after_mib: int
    parameters: int
    alive_parameters: int
    holders: tuple[str, ...]
    kept_mib: int | None = None

    @property
    def freed_mib(self) -> int:
        """MiB given back."""
        return self.before_mib - self.after_mib

    @property
    def complete(self) -> bool:
        """Whether nothing holds the model, and memory is where it was before."""
        back = self.kept_mib is None or self.kept_mib <= TOLERANCE_MIB
        return not self.holders and not self.alive_parameters and back

    def __str__(self) -> str:
        lines = [
            f"Freed {self.freed_mib} MiB of {self.kind} "
            f"({self.before_mib} -> {self.after_mib} MiB); "
            f"{self.parameters - self.alive_parameters} of {self.parameters} "
            "parameters are gone."
        ]
        if self.holders:
            lines.append(
                f"Still held by {', '.join(self.holders)}: delete that and call "
                "cleanup_memory()."
            )
        elif self.alive_parameters:
            lines.append(
                "What holds the rest is not known: shutdown_kernel() frees it."
            )
        if self.kept_mib is not None and self.kept_mib > TOLERANCE_MIB:
            lines.append(
                f"{self.kept_mib} MiB more than before the load are in use: by the "
                "libraries, their caches, or another process."
            )
        return "\n".join(lines)

    __repr__ = __str__


def release_model(
    model: Any,
    *,
    before_load_mib: int | None = None,
    namespace: MutableMapping[str, Any] | None = None,
) -> ReleaseReport:
    """Give a model's memory back without ending the kernel.

    `model` is what `from_pretrained` returned, or a `vllm.LLM`. What runs in its
    engine is aborted, the engine is shut down, and the variables that refer to either
    are deleted from `namespace` (default: the notebook's; in a script pass
    `globals()`), with IPython's output history and the last traceback.
    `before_load_mib` is `measure_memory()` from before the load, for the comparison.
    The report says what still holds the model. A CUDA context and the libraries'
    own caches stay until the process ends: `kernel.shutdown_kernel()`.
    """
    kind, before = memory_kind(), measure_memory()
    shell = _shell()
    if namespace is None:
        namespace = shell.user_ns if shell is not None else {}
    engine = _engine_of(model)
    inner = _inner_models(model)
    networks = [part for part in inner if hasattr(part, "parameters")]
    if engine is not None:
        networks += _engine_networks(engine)
    parameters = _weak_parameters(networks)
    owners = [part for part in (*inner, engine) if part is not None]
    if engine is not None:
        _stop_engine(engine)
        _drop_bytecode_hooks()
    _unlink_engine(inner)
    _forget(owners, namespace, shell)
    weak = _weak_references([*owners, *networks])
    # Nothing in this frame may hold what is to be freed.
    del model, engine, inner, networks, owners
    cleanup_memory()
    if _clear_finished_frames(weak):
        cleanup_memory()
    alive = [part for part in (reference() for reference in weak) if part is not None]
    alive_parameters = [
        part for part in (reference() for reference in parameters) if part is not None
    ]
    holders: list[str] = []
    for target in alive or alive_parameters[:1]:
        for holder in _holders(target, namespace, (alive, alive_parameters)):
            if holder not in holders:
                holders.append(holder)
    if alive and not holders:
        holders.append(UNSEEN_HOLDER)
    del alive
    after = measure_memory()
    return ReleaseReport(
        kind,
        before,
        after,
        parameters=len(parameters),
        alive_parameters=len(alive_parameters),
        holders=tuple(holders),
        kept_mib=None if before_load_mib is None else after - before_load_mib,
    )


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


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _inner_models(model: Any) -> list[Any]:
    """The model and what it wraps: PEFT's and Unsloth's wrappers use `.model`."""
    found: list[Any] = []
    while model is not None and not any(model is part for part in found):
        if _is_vllm(model):
            break
        found.append(model)
        model = getattr(model, "model", None)
    return found


def _is_vllm(thing: Any) -> bool:
    return hasattr(thing, "llm_engine")


def _engine_of(model: Any) -> Any:
    if _is_vllm(model):
        return model
    for part in _inner_models(model):
        engine = getattr(part, "vllm_engine", None)
        if engine is not None:
            return engine
    return None


def _engine_networks(engine: Any) -> list[Any]:
    """The torch modules of an engine in this process; none of one in another."""
    found: list[Any] = []
    with contextlib.suppress(Exception):  # Only for the report; it must not stop here.
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            engine.apply_model(found.append)
    return found


def _weak_parameters(networks: list[Any]) -> list[weakref.ref]:
    unique = {
        id(parameter): parameter
        for network in networks
        for parameter in network.parameters()
    }
    return _weak_references(list(unique.values()))


def _weak_references(things: list[Any]) -> list[weakref.ref]:
    return [weakref.ref(thing) for thing in things if hasattr(thing, "__weakref__")]


def _stop_engine(engine: Any) -> None:
    inner = engine.llm_engine
    running = list(inner.output_processor.request_states)
    if running:
        inner.abort_request(running, internal=True)
    inner.engine_core.shutdown()


def _drop_bytecode_hooks() -> None:
    """Take vLLM's hooks out of Dynamo: each of them holds a whole compiled model.

    Dynamo's list is private, and another release may have none.
    """
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    hooks = getattr(convert_frame, "_bytecode_hooks", None)
    if not isinstance(hooks, MutableMapping):
        return
    for key, hook in list(hooks.items()):
        owner = type(getattr(hook, "__self__", None))
        # The model's own class may be the user's; its base class is vLLM's.
        if any(base.__module__.split(".")[0] == "vllm" for base in owner.__mro__):
            del hooks[key]


def _unlink_engine(inner: list[Any]) -> None:
    for part in inner:
        for name in ("vllm_engine", "fast_generate", "fast_generate_batches"):
            with contextlib.suppress(AttributeError):
                delattr(part, name)


def _forget(owners: list[Any], namespace: MutableMapping[str, Any], shell: Any) -> None:
    """Delete the variables, outputs and tracebacks that refer to one of `owners`."""
    mappings = [namespace]
    if shell is not None:
        mappings += [shell.user_ns, shell.user_ns.get("Out", {})]
        for name in ("_", "__", "___"):  # The display hook's own copies.
            if _refers(getattr(shell.displayhook, name, None), owners):
                setattr(shell.displayhook, name, None)
    for mapping in mappings:
        for name, value in list(mapping.items()):
            if _refers(value, owners):
                del mapping[name]
    for name in ("last_exc", "last_value", "last_traceback"):
        if hasattr(sys, name):
            setattr(sys, name, None)


def _clear_finished_frames(weak: list[weakref.ref]) -> bool:
    """Drop the variables of calls that have ended and still hold one of these.

    Whatever keeps an exception keeps the variables of every call on its way, and
    libraries keep some from a first load. A generator may still go on: it stays.
    """
    suspendable = (
        inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    )
    cleared = False
    for target in (reference() for reference in weak):
        if target is None:
            continue
        for referrer in gc.get_referrers(target):
            if isinstance(referrer, types.FrameType) and not (
                referrer.f_code.co_flags & suspendable
            ):
                with contextlib.suppress(RuntimeError):  # It is running.
                    referrer.clear()
                    cleared = True
    return cleared


def _refers(value: Any, owners: list[Any]) -> bool:
    """Whether it is one of them, or one of their bound methods, wrapped or not."""
    value = getattr(value, "__wrapped__", value)
    target = getattr(value, "__self__", value)
    return any(target is owner for owner in owners)


def _holders(
    target: Any, namespace: MutableMapping[str, Any], own: tuple[list[Any], ...]
) -> Iterator[str]:
    """Name what refers to `target`, in words that a reader can act on."""
    variables = {id(value): name for name, value in namespace.items()}
    modules = {
        id(vars(module)): name
        for name, module in list(sys.modules.items())
        if isinstance(module, types.ModuleType)
    }
    for referrer in gc.get_referrers(target):
        kind = type(referrer)
        if isinstance(referrer, types.GeneratorType | types.CoroutineType):
            yield f"a generator of {referrer.__name__}()"
        elif isinstance(referrer, types.FrameType):
            if referrer.f_code.co_filename != __file__:
                yield f"a call of {referrer.f_code.co_name}() that still runs"
        elif referrer is namespace or id(referrer) in modules:
            home = "" if referrer is namespace else f"{modules[id(referrer)]}."
            for name, value in referrer.items():
                if value is target:
                    yield f"the variable {home}{name}"
        elif id(referrer) in variables:
            yield f"the variable {variables[id(referrer)]} (a {kind.__name__})"
        elif kind is dict:
            yield _owner_of(referrer)
        elif not any(referrer is known for known in own):
            yield f"an object of {kind.__module__}.{kind.__name__}"


def _owner_of(attributes: dict) -> str:
    """Name the object whose attributes a dict holds; a dict of its own is one."""
    for referrer in gc.get_referrers(attributes):
        if getattr(referrer, "__dict__", None) is attributes:
            kind = type(referrer)
            return f"an object of {kind.__module__}.{kind.__name__}"
    return "a dict"
