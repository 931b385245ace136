"""The same batch on Ray: the same records, on two nodes and with a worker killed."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from child import run_child
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from helpers.batch import BatchResult, _load_batch, run_batch
from helpers.internals.batch.prompts import Prompt
from helpers.internals.engine.exceptions import EngineUnavailableError, ModelLoadError
from helpers.models import TINY_THINKER_DIRECTORY
from helpers.scaling import RayEngine


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What happened in one Python that started two nodes of Ray."""
    folder: Path = tmp_path_factory.mktemp("scaling")
    variables = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Ray kills its workers when others fill the memory, and starts them for ever.
    variables["RAY_memory_monitor_refresh_ms"] = "0"
    return run_child("scaling", str(folder), timeout=540, **variables)


def without(rows: list[dict], *names: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def test_two_nodes_work_and_a_killed_worker_loses_nothing(child: dict) -> None:
    assert child["nodes_at_work"] == 2
    assert child["calls"] >= 200 / 8
    rows = child["records"]
    assert [row["index"] for row in rows] == list(range(200))
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(200)]
    assert [row["id"] for row in rows if row["error"]] == ["q7"]
    assert {row["tries"] for row in rows} == {1, 2}
    assert rows[2]["response"] == "2 + 10 = 12"
    assert child["ray_ended"]
    assert child["left"] == [], "a worker's folder of modules"


def test_one_engine_goes_on_with_what_ray_began(child: dict) -> None:
    resumed = without(child["resumed"], "started", "time")
    assert resumed == without(child["records"], "started", "time")


def test_bad_parameters_fail_before_ray_starts(child: dict) -> None:
    kind, message = child["bad_sampling"]
    assert kind == "ValueError" and "hot" in message


def test_a_worker_that_cant_load_says_why(child: dict) -> None:
    kind, message = child["broken"]
    assert kind == "ActorDiedError" and "OSError: no such weights" in message


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineUnavailableError, match=r'pip install "ray\[data\]"'):
        run_batch("tiny-thinker", ["hello"], engine="ray")


class OfTokenizer:
    """In the place of Ray, since the file is all that matters."""

    job, room = {"model": "mine"}, 512

    def __init__(self, *_: object) -> None:
        pass

    def run(self, prompts: Iterable[Prompt]) -> Iterator[BatchResult]:
        for p in prompts:
            yield BatchResult(index=p.index, prompt=p.given, response="12")


def test_another_chat_template_is_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.batch.RayRunner", OfTokenizer)
    common = {"engine": "ray", "output": tmp_path / "a.jsonl", "progress": False}
    tokenizer = AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY)
    for _ in range(2):
        assert run_batch("mine", ["7 + 5?"], tokenizer=tokenizer, **common).answered
    with pytest.raises(ValueError, match="own_template was .*, is None"):
        run_batch("mine", ["7 + 5?"], **common)
    tokenizer.chat_template += " "
    with pytest.raises(ValueError, match="own_template was"):
        run_batch("mine", ["7 + 5?"], tokenizer=tokenizer, **common)


def test_weights_for_several_gpus_are_checked_too(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY_THINKER_DIRECTORY, tmp_path / "mine")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"Missing: model\.norm\.weight"):
        _load_batch(str(folder), RayEngine(gpus_per_worker=2))


def test_a_model_that_is_loaded_already_is_refused() -> None:
    with pytest.raises(TypeError, match="name or path"):
        run_batch(object(), ["hello"], engine="ray")
    with pytest.raises(ValueError, match="'vllm', 'ray' or"):
        run_batch(object(), ["hello"], engine="spark")


@pytest.mark.parametrize(
    "name", ["workers", "batch_size", "gpus_per_worker", "max_seq_length"]
)
def test_an_engine_that_would_never_answer_is_refused(name: str) -> None:
    """With a `batch_size` of 0 Ray would be started again and again."""
    with pytest.raises(ValueError, match=f"{name} is 1 or more, not 0"):
        RayEngine(**{name: 0})
