"""Prompts from files, in every form, and none of them stops the others."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from helpers.internals.batch.records import (
    Prompts,
    Refused,
    is_file,
    prompt_hash,
    read_prompts,
)

Q = "What is 7 + 5?"
CHAT = [{"role": "user", "content": Q}]
FORMS = [Q, CHAT, {"id": 3, "prompt": Q, "sampling_params": {"max_tokens": 9}}]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(key: str = "a", **body: Any) -> dict[str, Any]:
    """A line as OpenAI's batch API has it."""
    body = {"model": "gpt-4o-mini", "messages": CHAT, **body}
    url = "/v1/chat/completions"
    return {"custom_id": key, "method": "POST", "url": url, "body": body}


def test_lines_are_prompts_in_every_form(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", FORMS)
    assert list(read_prompts(path)) == FORMS == list(Prompts(str(path)))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf\n" + path.read_bytes()))
    assert list(read_prompts(packed)) == FORMS


def test_a_url_is_read_as_a_path_is() -> None:
    import fsspec

    with fsspec.open("memory://prompts/a.jsonl", "w") as file:
        file.write(json.dumps(Q))
    assert list(Prompts("memory://prompts/a.jsonl")) == [Q]


def test_a_line_that_is_no_json_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"good"\n\n{"prompt": \n"\xff"\n' + b"[" * 10**5 + b'\n"good"')
    first, *refused, last = read_prompts(path)
    assert first == last == "good"
    assert [r.reason.split(" is ")[0] for r in refused] == [
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
    assert list(read_prompts(path)) == [
        {"id": 1, "messages": CHAT, "sampling_params": {"seed": 1}},
        {"messages": CHAT, "sampling_params": {"stop": "a"}},
        {"id": 3, "messages": CHAT},
    ]


def test_parquet_without_prompts_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"question": [Q]}), path)
    with pytest.raises(ValueError, match="question: rename"):
        Prompts(path)


def test_requests_of_openai_are_prompts_with_their_parameters(tmp_path: Path) -> None:
    asked = {"max_completion_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 1}
    extra = {"stop": ["x"], "user": "me", "tools": None, "stream": False}
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    schema = {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            request(**asked, **extra, **thinking),
            request("b", response_format=form, **thinking),
            request("c", response_format={"type": "json_object"}, **thinking),
            request("d", response_format={"type": "text"}, max_tokens=5),
        ],
    )
    sampling = {"max_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 1}
    rows = list(read_prompts(path))
    assert rows[0] == {
        "id": "a",
        "messages": CHAT,
        "sampling_params": {**sampling, "stop": ["x"]},
        **thinking,
    }
    assert [row["sampling_params"] for row in rows[1:]] == [
        {"structured_outputs": {"json": schema}},
        {"structured_outputs": {"json_object": True}},
        {"max_tokens": 5},
    ]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]


def test_requests_in_parquet_may_have_their_body_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    row = {"custom_id": "a", "body": json.dumps({"messages": CHAT, "seed": 1})}
    parquet.write_table(pa.Table.from_pylist([row]), path)
    (prompt,) = read_prompts(path)
    assert prompt == {"id": "a", "messages": CHAT, "sampling_params": {"seed": 1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (request(tools=[{"type": "function"}]), "tools"),
        (request(logprobs=True, reasoning_effort="low"), "logprobs, reasoning_effort"),
        (request(response_format={"type": "json_object"}), "enable_thinking"),
        (request(chat_template_kwargs=[1], logprobs=True), "logprobs"),
        ({**request(), "url": "/v1/embeddings"}, "/v1/embeddings"),
        ({**request(), "body": {"prompt": Q}}, "body with messages"),
        ({**request(), "body": "{"}, "body is no JSON"),
    ],
)
def test_what_a_request_asks_for_in_vain_is_named(
    tmp_path: Path, line: dict, reason: str
) -> None:
    (refused,) = read_prompts(write_lines(tmp_path / "a.jsonl", [line]))
    assert isinstance(refused, Refused)
    assert reason in refused.reason and refused.id == "a"


def test_ids_are_refused_where_they_come_twice_or_cant_be_written() -> None:
    ids = ["a", 1, "b", "a", None, None, {"no": 1}, "\ud800", 1.5, "1", 1, "a", True]
    entries = list(Prompts([{"id": key, "prompt": Q} for key in ids]))
    good = [e["id"] for e in entries if not isinstance(e, Refused)]
    assert good == ["a", 1, "b", None, None, "1"]
    refused = [(i, e) for i, e in enumerate(entries) if isinstance(e, Refused)]
    assert [i for i, _ in refused] == [3, 6, 7, 8, 10, 11, 12]
    assert [e.id for _, e in refused] == ["a", None, None, None, 1, "a", None]
    assert "earlier prompt" in refused[0][1].reason


def test_prompts_tell_whether_they_are_the_same() -> None:
    again = [*FORMS[:2], {**FORMS[2], "sampling_params": {"max_tokens": 10}}]
    assert Prompts(FORMS).digest == Prompts(iter(FORMS)).digest
    assert Prompts(FORMS).digest != Prompts(again).digest
    assert Prompts(FORMS).digest != Prompts(FORMS[::-1]).digest
    assert len(Prompts(iter(FORMS))) == 3
    circle: list = []
    circle.append(circle)
    for odd in (object(), {1: 2, "a": 3}, circle, b"", {"id": object()}):
        assert prompt_hash(odd) == prompt_hash(odd)


def test_only_paths_and_names_of_prompt_files_are_files(tmp_path: Path) -> None:
    assert is_file(tmp_path) and is_file("a.jsonl") and is_file("s3://b/a.parquet")
    assert not is_file(Q) and not is_file([Q]) and not is_file("a\nb.jsonl")
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        Prompts(tmp_path / "a.csv")
