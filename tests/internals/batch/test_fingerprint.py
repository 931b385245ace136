"""What makes two jobs the same: values, weights, templates; never an address."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helpers.internals.batch.fingerprint import (
    is_null,
    job_of,
    plain_value,
    template_arguments,
    template_text,
)
from helpers.internals.engine.sampling_params import Sampling
from helpers.models import TINY_THINKER_DIRECTORY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_THINKER_DIRECTORY, tmp_path / "merged"))


def test_a_model_trained_again_in_its_folder_is_another(folder: Path) -> None:
    before = job_of(str(folder))
    assert job_of(str(folder)) == before
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))
    after = job_of(str(folder))
    assert [key for key in before if before[key] != after[key]] == ["files"]


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "generation_config.json"]
)
def test_template_and_tokenizer_count_by_content(folder: Path, name: str) -> None:
    (folder / name).touch()
    before = job_of(str(folder))
    os.utime(folder / name)
    assert job_of(str(folder)) == before
    (folder / name).write_text("another")
    assert job_of(str(folder)) != before


def test_weights_of_the_hub_count_by_their_commit() -> None:
    one, other = (f"/hub/models--me--m/snapshots/{c * 40}" for c in "ab")
    assert job_of(one) == {"model": "me/m", "files": "a" * 40}
    assert job_of(other) == {"model": "me/m", "files": "b" * 40}


def job(sampling: Any = None, **changes: Any) -> dict[str, Any]:
    path = str(TINY_THINKER_DIRECTORY)
    resolved = Sampling(path, sampling).resolved
    return job_of(path, sampling_params=resolved, **({"context": 512} | changes))


def test_everything_that_decides_answers_makes_another_job() -> None:
    jobs = [
        *(job(), job({"max_tokens": 16}), job({"temperature": 1}), job({"seed": 1})),
        *(job(context=4096), job(chat_template_kwargs={"a": 1})),
    ]
    assert len({repr(one) for one in jobs}) == len(jobs)
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 2048}
    assert job(recommended) == job() == job({"top_k": np.int64(20)})


TOOL = '''
import sys
from helpers.internals.batch.fingerprint import template_arguments
pad = [object() for _ in range(int(sys.argv[1]))]
def weather(city: str) -> str:
    """Tell the weather of a city.

    Args:
        city: its name
    """
def sparse(city: str) -> str:
    """Tell the weather of a city."""
print(template_arguments({"tools": [weather, sparse]}))
'''


def test_a_function_counts_by_its_schema_in_every_process() -> None:
    first, second = (
        subprocess.run(
            [sys.executable, "-c", TOOL, pad],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for pad in ("0", "5000")
    )
    assert first == second and "0x" not in first
    for name in ("weather", "sparse"):
        assert f"'name': '{name}'" in first
    assert first.count("'properties': {'city': {") == 2


def test_what_has_no_value_is_refused() -> None:
    for odd in (object(), lambda city: city):
        with pytest.raises(ValueError, match="chat_template_kwargs"):
            template_arguments({"tools": [odd]})
    with pytest.raises(ValueError, match="are a dict"):
        template_arguments(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["false", 0, None, {}])
def test_thinking_is_switched_by_a_truth_value_alone(value: Any) -> None:
    assert template_arguments({"enable_thinking": np.bool_(False)})
    with pytest.raises(ValueError, match="enable_thinking is True or False"):
        template_arguments({"enable_thinking": value})


def test_values_of_pandas_and_pyarrow_count_by_what_they_are() -> None:
    given = [pd.NA, pd.NaT, pa.scalar(None), pa.scalar(3), pa.scalar([{"a": "b"}])]
    assert plain_value(given) == [None, None, None, 3, [{"a": "b"}]]
    nothing = [None, float("nan"), np.float32("nan"), pd.NaT, pd.NA, pa.scalar(None)]
    assert list(map(is_null, nothing)) == [True] * 6
    texts = ["nan", "None", "", np.str_("nan"), np.str_("None")]
    assert not any(map(is_null, [*texts, 0, [], np.array([np.nan])]))


def test_a_copy_keeps_the_order_that_a_template_writes() -> None:
    tools = [{"name": "add", "arguments": {"b": np.int64(1), "a": 2}}]
    (copied,) = template_arguments({"tools": tools})["tools"]
    assert json.dumps(copied) == '{"name": "add", "arguments": {"b": 1, "a": 2}}'


def test_of_several_chat_templates_one_has_to_be_named() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY)
    assert template_text(tokenizer) == tokenizer.chat_template
    tokenizer.chat_template = {"rag": "r {{ messages }}", "tool_use": "t"}
    assert template_text(tokenizer, "tool_use") == "t"
    with pytest.raises(ValueError, match=r"\['rag', 'tool_use'\]"):
        template_text(tokenizer)
