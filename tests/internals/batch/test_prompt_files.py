"""Prompts from lists and files of every kind; none of them stops the others."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from helpers.internals.batch.prompts import PromptSource

Q = "What is 7 + 5?"
CHAT = [{"role": "user", "content": Q}]
FORMS = [Q, CHAT, {"id": 3, "prompt": Q, "sampling_params": {"max_tokens": 9}}]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def given(prompts: Any) -> list[Any]:
    return [prompt.given for prompt in PromptSource(prompts)]


def test_lines_are_prompts_in_every_form(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", FORMS)
    assert given(path) == given(str(path)) == FORMS
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf\n" + path.read_bytes() + b"\n \n"))
    assert given(packed) == FORMS
    for name in ("A.JSONL", "a.ndjson"):
        assert given(path.rename(path := tmp_path / name)) == FORMS


def test_another_encoding_is_refused_line_by_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", FORMS)
    path.write_text(path.read_text(), encoding="utf-16")
    for prompt in PromptSource(path):
        assert "is not valid JSON in UTF-8" in prompt.refused


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl?download=true"])
def test_a_url_is_read_as_a_path_is(name: str) -> None:
    import fsspec

    with fsspec.open(f"memory://prompts/{name}", "w") as file:
        file.write(json.dumps(Q))
    assert given(f"memory://prompts/{name}") == [Q]


def test_a_line_that_is_not_json_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"good"\n\n{"prompt": \n"\xff"\n' + b"[" * 10**5 + b'\n"good"')
    source = PromptSource(path)
    first, *refused, last = source
    assert first.given == last.given == "good" and source.job["prompts"] == 5
    assert [prompt.refused.split(" is ")[0] for prompt in refused] == [
        "line 3",
        "line 4",
        "line 5",
    ]


def test_rows_of_parquet_are_prompts_without_their_nulls(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "messages": CHAT, "sampling_params": {"seed": 1, "stop": None}},
        {"id": None, "messages": CHAT, "sampling_params": {"seed": None, "stop": "a"}},
        {"id": 3, "messages": CHAT, "sampling_params": None, "length": 7},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert given(path) == [
        {"id": 1, "messages": CHAT, "sampling_params": {"seed": 1}},
        {"messages": CHAT, "sampling_params": {"stop": "a"}},
        {"id": 3, "messages": CHAT},
    ]


def test_text_of_parquet_without_its_mark_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["é".encode()]}), path)
    (prompt,) = PromptSource(path)
    assert prompt.messages == [{"role": "user", "content": "é"}]


def test_parquet_without_prompts_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"question": [Q]}), path)
    with pytest.raises(ValueError, match="question: rename"):
        PromptSource(path)


@pytest.mark.parametrize("name", ["system", "tools", "temperature", "seed", "stop"])
def test_parquet_has_no_column_that_would_be_lost(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": [Q], name: ["a"], "label": ["b"]}), path)
    with pytest.raises(ValueError, match=f"move {name} into messages, .*or rename it"):
        PromptSource(path)


def test_lines_of_an_open_file_are_the_prompts_of_its_path(tmp_path: Path) -> None:
    lines = [*FORMS[1:], {"custom_id": "a", "body": {"messages": CHAT}}]
    path = write_lines(tmp_path / "a.jsonl", lines)
    for mode in ("r", "rb"):
        with path.open(mode) as file:
            read = list(PromptSource(file))
        of_path = list(PromptSource(path))
        for name in ("refused", "id", "messages", "sampling_params"):
            assert [getattr(p, name) for p in read] == [
                getattr(p, name) for p in of_path
            ]


def test_rows_of_a_table_are_prompts_without_what_is_missing() -> None:
    rows = [
        {"id": 1, "prompt": Q, "sampling_params": {"seed": 1}},
        {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
        {"custom_id": "a", "body": {"messages": CHAT}},
    ]
    frame = pd.DataFrame(rows)
    for table in (frame, frame.astype({"id": "Int64"}).astype(object)):
        prompts = list(PromptSource(table.to_dict("records")))
        assert [p.refused for p in prompts] == [""] * 3
        assert [p.id for p in prompts] == [1, None, "a"]
        assert [p.messages for p in prompts] == [CHAT] * 3
    column = pa.array([{"id": 1, "prompt": Q}, {"id": None, "prompt": Q}])
    prompts = list(PromptSource(column))
    assert [(p.refused, p.id, p.messages) for p in prompts] == [
        *(("", 1, CHAT), ("", None, CHAT))
    ]


def test_requests_in_parquet_may_have_their_body_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    row = {"custom_id": "a", "body": json.dumps({"messages": CHAT, "seed": 1})}
    parquet.write_table(pa.Table.from_pylist([row]), path)
    (prompt,) = PromptSource(path)
    assert (prompt.id, prompt.messages) == ("a", CHAT)
    assert prompt.sampling_params == {"seed": 1}


def test_a_file_that_changes_while_the_job_runs_ends_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["a", "b", "c"])
    source = PromptSource(path)
    write_lines(path, ["a", "b", "c", "d"])
    assert [prompt.given for prompt in source] == ["a", "b", "c"]
    write_lines(path, ["a"])
    assert [prompt.index for prompt in source] == [0, 1, 2]
    assert [bool(prompt.refused) for prompt in source] == [False, True, True]


def test_ids_are_refused_where_they_come_twice() -> None:
    ids = ["a", 1, "b", "a", None, None, "1", 1, "a", 1.0]
    prompts = list(PromptSource([{"id": key, "prompt": Q} for key in ids]))
    good = [prompt.id for prompt in prompts if not prompt.refused]
    assert good == ["a", 1, "b", None, None, "1"]
    refused = [(p.index, p.id) for p in prompts if p.refused]
    assert refused == [(3, "a"), (7, 1), (8, "a"), (9, 1)]
    assert "earlier prompt" in prompts[3].refused


def digest(prompts: Any) -> dict:
    return PromptSource(prompts).job


def test_prompts_tell_by_value_if_they_are_the_same() -> None:
    again = [*FORMS[:2], {**FORMS[2], "sampling_params": {"max_tokens": 10}}]
    assert digest(FORMS) == digest(iter(FORMS))
    assert digest(FORMS)["prompts"] == 3
    different = [
        FORMS,
        again,
        FORMS[::-1],
        ["a"],
        [["a"]],
        [5],
        [np.float32(5)],
    ]
    different += [[{"id": 1, "prompt": Q}], [{"id": "1", "prompt": Q}]]
    different += [[{"prompt": Q, "sampling_params": {"stop": ["a"]}}]]
    for text in ("What is 7 + 5?", "Who wrote Faust?"):
        chat = [{"role": "user", "content": text}]
        different.append([np.array(chat, dtype=object)])
    for text in "ab":  # Keys of two kinds have no order.
        kwargs = {"a": {1: 2, "b": 3}}
        different.append([{"prompt": text, "chat_template_kwargs": kwargs}])
    assert len({digest(one)["prompts_hash"] for one in different}) == len(different)
    assert digest([np.array(CHAT, dtype=object)]) == digest([CHAT])
    circle: list = []
    circle.append(circle)
    for odd in (object(), circle, {1: 2, "a": 3}, {"id": object()}, {"a"}, "\ud800"):
        assert digest([odd]) == digest([odd])


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.jsonl.gz", gzip.compress(b'"a"\n' * 9, mtime=0)[:-9], "ended before"),
        ("no.jsonl.gz", b'"a"', "Not a gzipped file"),
        ("no.jsonl.xz", b'"a"', "not supported"),
        ("empty.parquet", b"", "0 bytes"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} can't be read: .*{reason}"):
        PromptSource(tmp_path / name)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PromptSource(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    "name", ["a.csv", "data/q.json", "a.jsonl.zst", "a", Path("a"), "", Q, "b\n.csv"]
)
def test_what_is_no_file_of_prompts_is_refused_by_its_name(name: str | Path) -> None:
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet.*\[prompt\]") as error:
        PromptSource(name)
    assert repr(str(name)) in str(error.value)


def test_a_folder_of_parquet_parts_is_refused_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "parts.parquet"
    folder.mkdir()
    with pytest.raises(ValueError, match="is not a file of prompts"):
        PromptSource(folder)
