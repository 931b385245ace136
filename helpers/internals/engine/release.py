"""Give a model's memory back without ending the kernel."""

import contextlib
import ctypes
import gc
import inspect
import os
import sys
import types
import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..machine.devices import measure_memory, memory_kind
from .stop import abort_all, engine_of, parts_of

# A smaller difference is due to CUDA's caches and rounding.
TOLERANCE_MIB = 64


@dataclass(frozen=True, repr=False)
class CleanupReport:
    """What a cleanup gave back, in MiB of `kind`."""

    kind: str
    before_mib: int
    after_mib: int

    @property
    def freed_mib(self) -> int:
        """MiB given back; negative where something else took memory meanwhile."""
        return self.before_mib - self.after_mib

    def __repr__(self) -> str:
        return (
            f"Freed {self.freed_mib} MiB of {self.kind} "
            f"({self.before_mib} -> {self.after_mib} MiB)."
        )


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


@dataclass(frozen=True, repr=False)
class ReleaseReport(CleanupReport):
    """What `release_model` gave back, in MiB of `kind`, and what it could not.

    `alive_parameters` of the model's `parameters` could not be freed because of what
    `holders` names. `kept_mib` is how far memory stands above its level before the
    load, where that was given.
    """

    parameters: int
    alive_parameters: int
    holders: tuple[str, ...]
    kept_mib: int | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing holds the model, and memory is where it was before."""
        back = self.kept_mib is None or self.kept_mib <= TOLERANCE_MIB
        return not self.holders and not self.alive_parameters and back

    def __repr__(self) -> str:
        gone = self.parameters - self.alive_parameters
        text = (
            f"{super().__repr__().removesuffix('.')}; {gone} of {self.parameters} "
            "parameters are gone."
        )
        if self.holders:
            held = ", ".join(self.holders)
            text += f"\nStill held by {held}: delete that and call cleanup_memory()."
        elif self.alive_parameters:
            text += "\nWhat holds the rest is not known: shutdown_kernel() frees it."
        if self.kept_mib is not None and self.kept_mib > TOLERANCE_MIB:
            text += (
                f"\n{self.kept_mib} MiB more than before the load are in use: by the "
                "libraries, their caches, or another process."
            )
        return text


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
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if namespace is None:
        namespace = shell.user_ns if shell is not None else {}
    parts, parameters = _let_go(model, namespace, shell)
    del model  # Nothing in this frame may hold what is to be freed.
    free_unused_memory()
    if _clear_finished_frames(parts):
        free_unused_memory()
    alive_parameters, holders = _survivors(parts, parameters, namespace)
    after = measure_memory()
    return ReleaseReport(
        kind,
        before,
        after,
        parameters=len(parameters),
        alive_parameters=alive_parameters,
        holders=holders,
        kept_mib=None if before_load_mib is None else after - before_load_mib,
    )


References = list[weakref.ref]


def _let_go(
    model: Any, namespace: MutableMapping[str, Any], shell: Any
) -> tuple[References, References]:
    """Stop the engine and drop what refers to the model; what to look for later.

    That is the model with its parts, and the parameters of all of them.
    """
    engine, inner = engine_of(model), parts_of(model)
    networks = [part for part in inner if hasattr(part, "parameters")]
    owners = list(inner)
    if engine is not None:
        owners.append(engine)
        with contextlib.suppress(Exception):  # Only for the report.
            if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
                engine.apply_model(networks.append)
    parameters = {id(one): one for network in networks for one in network.parameters()}
    _drop_launches(parameters.values())
    if engine is not None:
        abort_all(engine.llm_engine)
        engine.llm_engine.engine_core.shutdown()
        _drop_bytecode_hooks()
        _forget_graph_pool()
    for part in inner:
        for name in ("vllm_engine", "fast_generate", "fast_generate_batches"):
            with contextlib.suppress(AttributeError):
                delattr(part, name)
    _forget(owners, namespace, shell)
    return _weakly([*owners, *networks]), _weakly(parameters.values())


def _weakly(things: Iterable[Any]) -> References:
    return [weakref.ref(thing) for thing in things if hasattr(thing, "__weakref__")]


def _survivors(
    parts: References, parameters: References, namespace: MutableMapping[str, Any]
) -> tuple[int, tuple[str, ...]]:
    """How many parameters are alive still, and what holds them or the model."""
    alive, alive_parameters = (
        [thing for thing in (reference() for reference in weak) if thing is not None]
        for weak in (parts, parameters)
    )
    holders: dict[str, None] = {}  # In their order, each once.
    for target in alive or alive_parameters[:1]:
        holders |= dict.fromkeys(_holders(target, namespace, (alive, alive_parameters)))
    # The garbage collector can't see local variables of running functions.
    unseen = ("a local variable of a function that is still running",) if alive else ()
    return len(alive_parameters), tuple(holders) or unseen


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
        # The model's class may be the user's, with a base class of vLLM's.
        if any(base.__module__.split(".")[0] == "vllm" for base in owner.__mro__):
            del hooks[key]


def _drop_launches(parameters: Iterable[Any]) -> None:
    """Drop the launches of kernels that Unsloth keeps with 4-bit weights on a GPU.

    They hold views of their weight, and a view holds its base where Python's collector
    can't see it: each weight would keep itself alive.
    """
    for parameter in parameters:
        kept = getattr(getattr(parameter, "quant_state", None), "__dict__", {})
        for name in [name for name in kept if name.startswith("_unsloth_")]:
            del kept[name]


def _forget_graph_pool() -> None:
    """Let the next engine have a pool of its own for its CUDA graphs.

    vLLM keeps the handle of one on its platform's class, and the pool itself is gone
    with the engine: the next capture would end in an assertion of CUDA's allocator.
    """
    platforms = sys.modules.get("vllm.platforms")
    if platforms is not None:
        type(platforms.current_platform)._global_graph_pool = None


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


def _clear_finished_frames(weak: References) -> bool:
    """Drop the variables of calls that have ended and still hold one of these.

    Whatever keeps an exception keeps the variables of every call on its way, and
    libraries keep some from a first load. A generator may still go on: it stays.
    """
    resumable = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    alive = [target for target in (one() for one in weak) if target is not None]
    cleared = False
    for frame in gc.get_referrers(*alive):
        is_frame = isinstance(frame, types.FrameType)
        if is_frame and not frame.f_code.co_flags & resumable:
            with contextlib.suppress(RuntimeError):  # It is running.
                frame.clear()
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
