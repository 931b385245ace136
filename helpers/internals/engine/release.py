"""Give a model's memory back without ending the kernel.

In goes a model or an engine; out comes a report of the memory that it gave back, and of
what still holds the model. It knows nothing of loading.
"""

import contextlib
import ctypes
import gc
import inspect
import os
import sys
import types
import weakref
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..machine.devices import measure_memory, memory_kind
from .stop import abort_all, engine_of, parts_of

# A smaller difference is due to CUDA's caches and rounding.
TOLERANCE_MIB = 64


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
        text = (
            f"Freed {self.freed_mib} MiB of {self.kind} "
            f"({self.before_mib} -> {self.after_mib} MiB)"
        )
        if self.parameters:
            gone = self.parameters - self.alive_parameters
            text += f"; {gone} of {self.parameters} parameters are gone"
        text += "."
        if self.holders:
            text += (
                f"\nStill held by {', '.join(self.holders)}: delete that and call "
                "cleanup_memory(), or shutdown_kernel()."
            )
        if self.kept_mib > TOLERANCE_MIB:
            text += (
                f"\n{self.kept_mib} MiB more than before the load are in use: by the "
                "libraries, their caches, or another process."
            )
        return text


def free_unused_memory() -> None:
    """Collect garbage; hand cached memory back to the GPU and to the system."""
    # A tensor that another one is a view of is seen as garbage only once that is gone.
    for _ in range(5):
        if not gc.collect():
            break
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def release_model(
    model: Any,
    *,
    before_load_mib: int | None = None,
    namespace: MutableMapping[str, Any] | None = None,
) -> MemoryReport:
    """Give a model's memory back without ending the kernel, and say what was freed.

    `model` is what `from_pretrained` returned, or a `vllm.LLM`. Running requests are
    aborted and the engine is shut down. Variables of `namespace` that refer to either
    are deleted (default: the notebook's; in a script pass `globals()`), with IPython's
    output history and the last traceback. `before_load_mib` is `measure_memory()` from
    before the load, for the comparison. A CUDA context and the libraries' own caches
    stay until the process ends: `kernel.shutdown_kernel()`.
    """
    kind, before = memory_kind(), measure_memory()
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if namespace is None:
        namespace = shell.user_ns if shell else {}
    parts, parameters = _let_go(model, namespace, shell)
    del model  # Nothing in this frame may hold what is to be freed.
    free_unused_memory()
    _clear_finished_frames(parts)
    free_unused_memory()
    alive, holders = len(_alive(parameters)), _holders(parts, parameters, namespace)
    after = measure_memory()
    kept = 0 if before_load_mib is None else after - before_load_mib
    return MemoryReport(kind, before, after, len(parameters), alive, holders, kept)


References = list[weakref.ref]


def _weakly(things: Iterable[Any]) -> References:
    return [weakref.ref(thing) for thing in things if hasattr(thing, "__weakref__")]


def _alive(references: References) -> list[Any]:
    return [thing for weak in references if (thing := weak()) is not None]


def _let_go(
    model: Any, namespace: MutableMapping[str, Any], shell: Any
) -> tuple[References, References]:
    """Shut the engine down and delete references to the model.

    Return weak references to the model's parts and to their parameters, to check later
    what survived.
    """
    engine, owners = engine_of(model), parts_of(model)
    networks = [part for part in owners if hasattr(part, "parameters")]
    if engine is not None:
        owners.append(engine)
        with contextlib.suppress(Exception):  # Only for the report.
            if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
                engine.apply_model(networks.append)
    parameters = {id(one): one for network in networks for one in network.parameters()}
    for parameter in parameters.values():
        # Unsloth keeps launches of kernels with a 4-bit weight on a GPU. They hold
        # views of it, and a view holds its base where the collector can't see it.
        kept = getattr(getattr(parameter, "quant_state", None), "__dict__", {})
        for name in [name for name in kept if name.startswith("_unsloth_")]:
            del kept[name]
    if engine is not None:
        abort_all(engine.llm_engine)
        engine.llm_engine.engine_core.shutdown()
        _clear_libraries()
    for owner in owners:
        for name in ("vllm_engine", "fast_generate", "fast_generate_batches"):
            vars(owner).pop(name, None)
    _forget(owners, namespace, shell)
    return _weakly([*owners, *networks]), _weakly(parameters.values())


def _clear_libraries() -> None:
    """Clear what libraries keep of an engine, in attributes that are private."""
    # vLLM's hooks in Dynamo: each of them holds a whole compiled model.
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    getattr(convert_frame, "_bytecode_hooks", {}).clear()
    # vLLM's handle of a pool for CUDA graphs. The pool itself is gone with the engine:
    # the next capture would end in an assertion of CUDA's allocator.
    if platforms := sys.modules.get("vllm.platforms"):
        type(platforms.current_platform)._global_graph_pool = None


def _forget(owners: list[Any], namespace: MutableMapping[str, Any], shell: Any) -> None:
    """Delete the variables, outputs and tracebacks that refer to one of `owners`."""
    mappings, keepers = [namespace], []
    if shell:
        mappings += [*shell.all_ns_refs, shell.user_ns.get("Out", {})]
        keepers = [shell.displayhook, shell.last_execution_result]
    for mapping in mappings:
        for name in [key for key, value in mapping.items() if _refers(value, owners)]:
            del mapping[name]
    for keeper in keepers:
        for name, value in getattr(keeper, "__dict__", {}).items():
            if _refers(value, owners):
                setattr(keeper, name, None)
    for name in {"last_exc", "last_value", "last_traceback"} & vars(sys).keys():
        setattr(sys, name, None)


def _refers(value: Any, owners: list[Any]) -> bool:
    """Return True for an owner or one of its bound methods, wrapped or not."""
    value = getattr(value, "__wrapped__", value)
    target = getattr(value, "__self__", value)
    return any(target is owner for owner in owners)


def _clear_finished_frames(parts: References) -> None:
    """Drop the variables of calls that have ended and still hold a part of the model.

    Whatever keeps an exception keeps the variables of every call on its way, and
    libraries keep some from a first load. A generator may still go on: it stays.
    """
    resumable = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    for frame in gc.get_referrers(*_alive(parts)):
        is_frame = isinstance(frame, types.FrameType)
        if is_frame and not frame.f_code.co_flags & resumable:
            with contextlib.suppress(RuntimeError):  # It is running.
                frame.clear()


def _holders(
    parts: References, parameters: References, namespace: MutableMapping[str, Any]
) -> tuple[str, ...]:
    """Name what holds the parts of the model that are alive, or its first parameter."""
    alive, found = _alive(parts) or _alive(parameters)[:1], []
    variables = {id(value): name for name, value in namespace.items()}
    for target in alive:
        for holder in gc.get_referrers(target):
            if holder is namespace:
                found.append(f"the variable {variables[id(target)]}")
                continue
            if type(holder) is dict:  # Perhaps the attributes of an object or a module.
                owners = gc.get_referrers(holder)
                owned = (one for one in owners if getattr(one, "__dict__", 0) is holder)
                holder = next(owned, holder)
            kind, name = type(holder), getattr(holder, "__name__", "")
            if id(holder) in variables:
                name = f"{variables[id(holder)]} (a {kind.__name__})"
                found.append(f"the variable {name}")
            elif holder is not alive and kind is not types.FrameType:
                found.append(f"an object of {kind.__module__}.{kind.__name__} {name}")
    if alive and not found:  # The collector can't see running functions.
        found = ["a local variable of a function that is still running"]
    return tuple(dict.fromkeys(name.rstrip() for name in found))
