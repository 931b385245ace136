"""The same batch on Ray Data: several GPUs, several hosts, one call.

    run_batch("tiny-thinker", prompts, engine=RayEngine(workers=2))

Ray does all the distribution: it starts the workers, hands out prompts, and replaces a
worker that dies. Each worker loads the model and runs the loop of `run_batch`.
"""

import contextlib
import logging
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from typing import Any

from .internals.batch.fingerprint import job_of
from .internals.batch.prompts import Prompt
from .internals.engine.exceptions import EngineUnavailableError
from .internals.engine.plan import resolve_model_path
from .internals.engine.quiet import quiet
from .internals.engine.sampling_params import Sampling
from .internals.machine.settings import load_settings


@dataclass(frozen=True)
class RayEngine:
    """How many engines Ray shall run, and where.

    `workers` engines, by default one for each GPU, have `cpus_per_worker` cores each;
    `gpus_per_worker` above 1 spreads a model over GPUs of one host. `address` is that
    of a running cluster, "auto" for this machine's; without it Ray starts here and ends
    with the batch, unless it runs already. `batch_size` prompts go to a worker at a
    time, and again where one dies. `max_seq_length` is in tokens. `load` has further
    arguments of `FastLanguageModel.from_pretrained`, or of `vllm.LLM` for several GPUs.
    """

    workers: int | None = None
    address: str | None = None
    gpus_per_worker: int = 1
    cpus_per_worker: float = 1
    batch_size: int = 256
    max_seq_length: int = 2048
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers with which no prompt is ever answered."""
        for name in ("workers", "batch_size", "gpus_per_worker", "max_seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is 1 or more, not {value}.")


class RayRunner:
    """Answers prompts as a `Batch` does, by those that `load` makes in the workers."""

    def __init__(self, load: Any, model: Any, engine: RayEngine, *shared: Any) -> None:
        if not isinstance(model, str | PathLike):
            raise TypeError("Ray's workers load the model: pass its name or path")
        # Ray reads these at its start: no usage reports, no messages of progress.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            why = f'engine="ray" needs `pip install "ray[data]"` on every host: {error}'
            raise EngineUnavailableError(why) from error
        load_settings().apply()
        path, self.room = resolve_model_path(model), engine.max_seq_length
        given, template, *_ = shared
        sampling = Sampling(path, given).resolved  # Bad ones fail before any load.
        known = {"chat_template_kwargs": template, "sampling_params": sampling}
        self.job = job_of(path, load=engine.load, context=self.room, **known)
        self._engine, self._made_with = engine, (load, model, engine, *shared)

    def run(self, prompts: Iterable[Prompt]) -> Iterator[Any]:
        """Answer prompts, each as soon as its worker is done with its batch.

        Prompts wait in Ray's object store, which goes on to disk where they are many.
        Raises Ray's `ActorDiedError` where a worker can't load the model.
        """
        import pyarrow as pa
        import ray
        from ray.data import ActorPoolStrategy, from_arrow_refs

        engine, size, blocks = self._engine, self._engine.batch_size, []
        rows = ({"prompt": pickle.dumps(prompt)} for prompt in prompts)
        with _cluster(engine.address):
            while block := list(islice(rows, size)):
                blocks.append(ray.put(pa.Table.from_pylist(block)))
            if not blocks:
                return
            gpus = int(ray.cluster_resources().get("GPU", 0))
            workers = engine.workers or max(1, gpus // engine.gpus_per_worker)
            pool = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2)
            each = {"num_gpus": engine.gpus_per_worker if gpus else 0}
            each |= {"num_cpus": engine.cpus_per_worker, "batch_size": size}
            results = from_arrow_refs(blocks).map_batches(
                Worker, fn_constructor_args=self._made_with, compute=pool, **each
            )
            for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
                yield from map(pickle.loads, batch["result"])


class Worker:
    """One engine, in a process that Ray runs."""

    def __init__(self, load: Any, *made_with: Any) -> None:
        # Unsloth writes modules as it is imported. Workers of one host that write the
        # same ones would read each other's half-written files.
        with tempfile.TemporaryDirectory(prefix="unsloth_") as folder:
            os.environ["UNSLOTH_COMPILE_LOCATION"] = folder
            self._batch = load(*made_with)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        prompts = map(pickle.loads, batch["prompt"])
        with contextlib.closing(self._batch.run(prompts)) as results:
            return {"result": [pickle.dumps(result) for result in results]}


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Start Ray, or join a cluster, and end it with the block; use one that runs."""
    import ray

    if ray.is_initialized():
        yield
        return
    silent = {"include_dashboard": False, "log_to_driver": False}
    try:
        with quiet(load_settings()):
            # Without an address Ray would join whatever cluster it finds here.
            ray.init(address or "local", logging_level=logging.ERROR, **silent)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        yield
    finally:
        ray.shutdown()
