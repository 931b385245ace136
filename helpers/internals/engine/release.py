"""Give memory back without ending the kernel: what nobody uses, or a model's.

In goes a model or an engine; out comes a report: memory given back, and what holds it.
"""

import contextlib
import ctypes
import gc
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any
from weakref import ref

from ..machine.devices import measure_memory, memory_kind
from .stop import abort_all, engine_of, parts_of

TOLERANCE_MIB = 64  # A smaller difference is due to CUDA's caches and rounding.


@dataclass(frozen=True, repr=False)
class MemoryReport:
    """The memory before and after a cleanup or a release, in MiB of `kind`.

    Of a release: `alive_parameters` of the model's `parameters` could not be freed,
    `holders` names what holds them, and `kept_mib` is the growth since before the load.
    """

    kind: str
    before_mib: int
    after_mib: int
    parameters: int = 0
    alive_parameters: int = 0
    holders: tuple[str, ...] = ()
    kept_mib: int = 0

    @property
    def freed_mib(self) -> int:
        """MiB given back; negative if something else took memory meanwhile."""
        return self.before_mib - self.after_mib

    def __repr__(self) -> str:
        change = f"({self.before_mib} -> {self.after_mib} MiB)"
        text = f"Freed {self.freed_mib} MiB of {self.kind} {change}"
        if self.parameters:
            gone = self.parameters - self.alive_parameters
            text += f"; {gone} of {self.parameters} parameters are gone"
        if self.holders:
            text += f".\nStill held by {', '.join(self.holders)}: delete that and call "
            text += "cleanup_memory(), or shutdown_kernel()"
        if self.kept_mib > TOLERANCE_MIB:
            text += f".\n{self.kept_mib} MiB more than before the load are in use: by "
            text += "the libraries, their caches, or another process"
        return f"{text}."


def cleanup_memory() -> MemoryReport:
    """Collect garbage and hand cached memory back to the GPU or the system.

    An object that a variable still refers to stays: `del` the variable first. No CUDA
    context (some 500 MiB) is started where none runs.
    """
    kind, before = memory_kind(), measure_memory()
    # A tensor that another one is a view of is seen as garbage only once that is gone.
    for _ in range(5):
        if not gc.collect():
            break
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return MemoryReport(kind, before, measure_memory(kind))


def release_model(model: Any, *, before_load_mib: int | None = None) -> MemoryReport:
    """Give a model's memory back without ending the kernel, and say what was freed.

    `model` is what `from_pretrained` returned, or a `vllm.LLM`, whose requests are
    aborted. The variables of the notebook or script that refer to it are deleted, as
    are IPython's outputs that do. `before_load_mib` is `measure_memory()` from before
    the load. A CUDA context and the libraries' caches stay until the process ends.
    """
    kind, before = memory_kind(), measure_memory()
    parts, parameters = _let_go(model)
    del model  # Nothing in this frame may hold what is to be freed.
    cleanup_memory()
    _clear_finished_frames(parts)
    after, alive = cleanup_memory().after_mib, len(_still_alive(parameters))
    holders = _find_holders(_still_alive(parts) or _still_alive(parameters)[:1])
    kept = 0 if before_load_mib is None else after - before_load_mib
    return MemoryReport(kind, before, after, len(parameters), alive, holders, kept)


def _still_alive(references: list[ref]) -> list[Any]:
    return [thing for weak in references if (thing := weak()) is not None]


def _let_go(model: Any) -> tuple[list[ref], list[ref]]:
    """End the engine, forget the model; return weak references (parts, parameters)."""
    engine, owners = engine_of(model), parts_of(model)
    networks = [part for part in owners if hasattr(part, "parameters")]
    if engine is not None:
        owners.append(engine)
        with contextlib.suppress(Exception):  # Only for the report.
            if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
                engine.apply_model(networks.append)
    parameters = {one for network in networks for one in network.parameters()}
    for parameter in parameters:
        # Unsloth keeps launches of kernels with a 4-bit weight on a GPU. They hold
        # views of it, and a view holds its base where the collector can't see it.
        kept = getattr(getattr(parameter, "quant_state", None), "__dict__", {})
        for name in [name for name in kept if name.startswith("_unsloth_")]:
            del kept[name]
    if engine is not None:
        abort_all(engine.llm_engine)
        engine.llm_engine.engine_core.shutdown()
        # vLLM's hooks in Dynamo: each of them holds a whole compiled model.
        convert_frame = sys.modules.get("torch._dynamo.convert_frame")
        getattr(convert_frame, "_bytecode_hooks", {}).clear()
        # vLLM's handle of a pool for CUDA graphs, which is gone with the engine: the
        # next capture would end in an assertion of CUDA's allocator.
        if platforms := sys.modules.get("vllm.platforms"):
            type(platforms.current_platform)._global_graph_pool = None
    for owner in owners:
        for name in ("vllm_engine", "fast_generate", "fast_generate_batches"):
            vars(owner).pop(name, None)
    _forget_variables(owners)
    return list(map(ref, [*owners, *networks])), list(map(ref, parameters))


def _forget_variables(owners: list[Any]) -> None:
    """Delete the variables, outputs and tracebacks that refer to one of `owners`."""
    mappings, keepers = [vars(sys.modules["__main__"])], []
    ipython = sys.modules.get("IPython")
    if shell := ipython and ipython.get_ipython():
        mappings += [*shell.all_ns_refs, shell.user_ns.get("Out", {})]
        keepers = [shell.displayhook, shell.last_execution_result]
    for mapping in mappings:
        for name in [k for k, v in mapping.items() if _refers_to(v, owners)]:
            del mapping[name]
    for keeper in keepers:
        for name, value in getattr(keeper, "__dict__", {}).items():
            if _refers_to(value, owners):
                setattr(keeper, name, None)
    vars(sys).update(last_exc=None, last_value=None, last_traceback=None)


def _refers_to(value: Any, owners: list[Any]) -> bool:
    """Return True for an owner or one of its bound methods, wrapped or not."""
    value = getattr(value, "__wrapped__", value)
    target = getattr(value, "__self__", value)
    return any(target is owner for owner in owners)


def _clear_finished_frames(parts: list[ref]) -> None:
    """Drop the variables of calls that have ended: a kept exception keeps them all.

    Libraries keep some from a first load. A generator may still go on: it stays.
    """
    resumable = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    for frame in gc.get_referrers(*_still_alive(parts)):
        if inspect.isframe(frame) and not frame.f_code.co_flags & resumable:
            with contextlib.suppress(RuntimeError):  # It is running.
                frame.clear()


def _find_holders(alive: list[Any]) -> tuple[str, ...]:
    """Name what refers to one of these parts of a model."""
    variables = vars(sys.modules["__main__"])
    names = {id(value): name for name, value in variables.items()}
    found = [f"the variable {names[id(one)]}" for one in alive if id(one) in names]
    for holder in gc.get_referrers(*alive):
        if holder is alive or holder is variables or inspect.isframe(holder):
            continue
        if type(holder) is dict:  # Perhaps the attributes of an object or a module.
            owners = gc.get_referrers(holder)
            owned = (one for one in owners if getattr(one, "__dict__", 0) is holder)
            holder = next(owned, holder)
        kind, name = type(holder), getattr(holder, "__name__", "")
        if id(holder) in names:
            found.append(f"the variable {names[id(holder)]} (a {kind.__name__})")
        else:
            found.append(f"an object of {kind.__module__}.{kind.__name__} {name}")
    if alive and not found:  # The collector can't see running functions.
        found = ["a local variable of a function that is still running"]
    return tuple(dict.fromkeys(name.rstrip() for name in found))
