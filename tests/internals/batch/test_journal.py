"""Records on disk: whole or not there, whatever happens to the file."""

import errno
import fcntl
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.internals.batch.journal import (
    COLUMNS,
    open_journal,
    read_records,
    staged,
)

CACHE = "helpers.internals.batch.journal.CACHE"
JOB = {"model": "tiny-thinker", "sampling_params": {"temperature": 0.6}}


def record(index: int, **fields: object) -> dict:
    numbers = {"int64": 0, "double": 0.0}
    nothing = {name: numbers.get(kind) for name, kind in COLUMNS.items()}
    return nothing | {"index": index, "thinking": "é\u2028" * index} | fields


def journal_of(output: Path, job: dict = JOB, count: int = 5) -> Any:
    return open_journal(output, job, count)


def write(output: Path, indices: list[int], job: dict = JOB) -> None:
    with journal_of(output, job) as journal:
        for index in indices:
            journal.append(record(index))


@settings(deadline=None)
@given(
    order=st.permutations(range(5)),
    kept=st.integers(0, 5),
    cut=st.integers(0, 10**4),
    damage=st.dictionaries(st.integers(0, 10**4), st.integers(0, 255), max_size=3),
    tail=st.binary(max_size=20),
)
def test_a_torn_or_damaged_file_loses_no_whole_record(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    kept: int,
    cut: int,
    damage: dict[int, int],
    tail: bytes,
) -> None:
    output = tmp_path_factory.mktemp("torn") / "a.jsonl"
    write(output, order[:kept])
    data = bytearray(output.read_bytes())
    damage = {place: byte for place, byte in damage.items() if place < len(data)}
    for place, byte in damage.items():
        data[place] = byte
    torn = bytes(data[:cut]) + tail
    output.write_bytes(torn)
    with journal_of(output, count=5) as journal:
        try:
            there = {r["index"] for r in journal.load()}
        except ValueError:  # No line is a record, and perhaps a file of someone else.
            assert (damage or tail) and output.read_bytes() == torn
            return
        assert output.read_bytes() == torn[: torn.rfind(b"\n") + 1]
        if not damage:
            assert there == set(order[: data[:cut].count(b"\n")])
        for index in set(range(5)) - there:
            journal.append(record(index))
        journal.finish()
    records = list(read_records(output))
    assert [r["index"] for r in records] == [0, 1, 2, 3, 4]
    assert damage or records == [record(index) for index in range(5)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_finished_files_are_in_order_and_once(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    with journal_of(output, count=5) as journal:
        for index in (3, 1, 4, 0, 3, 2):
            journal.append(record(index))
        journal.finish()
    assert list(read_records(output)) == [record(index) for index in range(5)]
    before = output.read_bytes()
    with journal_of(output, count=5) as journal:
        assert len(list(journal.load())) == 5
        journal.finish()
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.job"]


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        ([1, None, 2**62], [1, None, 2**62]),
        (["a", None, "b"], ["a", None, "b"]),
        ([1, "1", None], ["1", '"1"', None]),
    ],
)
def test_ids_of_parquet_have_one_type(tmp_path: Path, ids: list, written: list) -> None:
    output = tmp_path / "a.parquet"
    with journal_of(output, count=len(ids)) as journal:
        for index, key in enumerate(ids):
            journal.append(record(index, id=key))
        journal.finish()
    for _ in "ab":  # The same again, when the job goes on with the finished file.
        assert pq.read_table(output)["id"].to_pylist() == written
        assert [r["id"] for r in read_records(output)] == ids
        with journal_of(output, count=len(ids)) as journal:
            assert len(list(journal.load())) == len(ids)
            journal.finish()


def test_ids_that_pandas_wrote_as_floats_become_whole_again(tmp_path: Path) -> None:
    output = tmp_path / "a.parquet"
    with journal_of(output, count=3) as journal:
        for index, key in enumerate((7, None, None)):
            journal.append(record(index, id=key))
        journal.finish()
    pd.read_parquet(output).head(2).to_parquet(output)  # A column of floats now.
    with journal_of(output, count=3) as journal:
        assert [r["id"] for r in journal.load()] == [7, None]
        journal.append(record(2, id=None))
        journal.finish()
    assert pq.read_table(output)["id"].to_pylist() == [7, None, None]


def test_of_two_records_the_later_counts(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with journal_of(output, count=1) as journal:
        journal.append(record(0, tries=1))
        journal.append(record(0, tries=2))
        journal.finish()
    assert list(read_records(output)) == [record(0, tries=2)]


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    """The kernel cuts the write short at a limit, as it does where a disk is full."""
    output = tmp_path / "a.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with journal_of(output, count=2) as journal:
        journal.append(record(0))
        size = output.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limits[1]))
        try:
            with pytest.raises(OSError, match="1 records are safe: make room"):
                journal.append(record(1))
            assert output.stat().st_size == size
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        journal.append(record(1))
    assert list(read_records(output)) == [record(0), record(1)]


def test_text_that_utf8_cant_hold_is_written_all_the_same(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with journal_of(output, count=1) as journal:
        journal.append(record(0, error="lone \ud800"))
    assert json.loads(output.read_text())["error"] == "lone ?"


def test_an_output_belongs_to_one_job(tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.jsonl"
    write(output, [0])
    with journal_of(output):
        pass
    other = {**JOB, "sampling_params": {"temperature": 1}}
    difference = r"sampling_params was \{'temperature': 0.6\}, is \{'temperature': 1\}"
    with pytest.raises(ValueError, match=difference), journal_of(output, other):
        pass
    output.unlink()
    with journal_of(output, other):  # Without records there is nothing to lose.
        pass


def test_what_only_one_run_knows_of_a_job_is_not_compared(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    write(output, [0], {**JOB, "precision": "float32"})
    with journal_of(output):
        pass
    another = {**JOB, "precision": "float16"}
    with pytest.raises(ValueError, match="precision"), journal_of(output, another):
        pass


def test_an_output_that_pandas_wrote_again_is_still_the_jobs(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    edited = record(1) | {"index": 1.0, "tries": 2.0, "mine": "x"}
    del edited["error"]
    write(output, [])
    lines = edited, {"mine": 1}, {"index": None}
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with journal_of(output, count=2) as journal:
        assert list(journal.load()) == [record(1, tries=2)]
        assert list(journal.offsets) == [-1, 0] and len(journal) == 1


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_a_disk_without_locks_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    output = tmp_path / "a.jsonl"
    with pytest.warns(UserWarning, match="can't be locked"):
        write(output, [0])
    assert list(read_records(output)) == [record(0)]


def test_what_is_to_be_deleted_for_a_new_job_is_there(tmp_path: Path) -> None:
    output = tmp_path / "a.parquet"
    write(output, [0])  # As far as an interrupted job came.
    another = {**JOB, "model": "another"}
    deleted = r"delete \S+a\.parquet\.jsonl to"
    with pytest.raises(ValueError, match=deleted), journal_of(output, another):
        pass


def test_a_link_leads_to_the_finished_file_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    output = tmp_path / "a.jsonl"
    output.symlink_to(disk / "a.jsonl")
    with journal_of(output, count=2) as journal:
        for index in (1, 0):
            journal.append(record(index))
        journal.finish()
    assert output.is_symlink()
    assert [r["index"] for r in read_records(disk / "a.jsonl")] == [0, 1]


def test_a_home_folder_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with staged("~/a.jsonl") as path:
        assert path == tmp_path / "a.jsonl"


def test_half_a_download_is_not_taken_for_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr(CACHE, tmp_path / "cache")
    url = "memory://half/a.jsonl"  # Without the .job that belongs to it.
    with fsspec.open(url, "w") as file:
        file.write("{}")
    with pytest.raises(FileNotFoundError), staged(url):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("torn", ["", '{"mod', "null", "[1]"])
def test_a_torn_job_names_the_records_that_it_was_for(
    tmp_path: Path, torn: str
) -> None:
    output = tmp_path / "a.jsonl"
    with journal_of(output) as journal:
        journal.append(record(0))
    (tmp_path / "a.jsonl.job").write_text(torn)
    why = "a.jsonl holds the records of another job: unknown"
    with pytest.raises(ValueError, match=why), journal_of(output):
        pass


def test_a_file_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    output.write_text("mine\n")
    alone = r"unknown\. Give another output\.$"  # It may be the questions.
    with pytest.raises(ValueError, match=alone), journal_of(output):
        pass
    assert output.read_text() == "mine\n"
    with (
        pytest.raises(ValueError, match=r"\.jsonl or \.parquet"),
        journal_of(tmp_path / "a.csv"),
    ):
        pass


ROWS = [{"id": 1, "response": "x"}, {"id": 2, "response": "y"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(map(json.dumps, ROWS + ROWS)),
    ],
)
def test_what_took_the_place_of_the_records_is_left_alone(
    tmp_path: Path, text: str
) -> None:
    output = tmp_path / "a.jsonl"
    write(output, [0])
    output.write_text(text)
    why = r"a\.jsonl holds no record of this job.*move \S+a\.jsonl\* away"
    for _ in "ab":
        with pytest.raises(ValueError, match=why), journal_of(output) as journal:
            list(journal.load())
        assert output.read_text() == text


def test_a_table_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "a.parquet"
    with journal_of(output, count=1) as journal:
        journal.append(record(0))
        journal.finish()
    pd.DataFrame(ROWS).to_parquet(output)
    before = output.read_bytes()
    why = r"move \S+a\.parquet\* away"
    with pytest.raises(ValueError, match=why), journal_of(output) as journal:
        list(journal.load())
    assert output.read_bytes() == before


def test_an_output_has_one_process(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with journal_of(output), pytest.raises(RuntimeError, match="another process"):
        journal_of(output).__enter__()
    with journal_of(output):
        pass


def test_a_url_gets_the_file_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CACHE, tmp_path / "cache")
    url = "memory://answers/a.jsonl"
    with pytest.raises(KeyboardInterrupt), staged(url) as output:
        write(output, [0, 1])
        raise KeyboardInterrupt
    with staged(url) as output, journal_of(output) as journal:
        assert [r["index"] for r in journal.load()] == [0, 1]
        journal.finish()
    assert list(read_records(url)) == [record(0), record(1)]
    assert not any((tmp_path / "cache").iterdir())
    with (
        pytest.raises(ValueError, match="another job"),
        staged(url) as output,
        journal_of(output, {"a": 1}),
    ):
        pass
