"""The records of a batch on disk, where they survive whatever ends the process.

In go plain records, each appended as its answer is finished; when all are there they
are sorted, in one step that either happens or does not. `<output>.job` says whose job
they are, and is locked while a process writes. This module knows no prompts or engines.
"""

import fcntl
import json
import os
import shutil
import time
import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import IO, Any

from ...models import CACHE

_ROWS = 1024  # of Parquet in memory at once
_JSON_IDS = {b"ids": b"json"}  # marks a Parquet file whose ids are JSON
# What a record has, and its type in Parquet. `started` is when its run of the job was,
# `time` when its answer was finished, both in seconds since 1970.
COLUMNS = {"index": "int64", "id": "string", "thinking": "string", "response": "string"}
COLUMNS |= {"complete": "bool", "finish_reason": "string", "prompt_tokens": "int64"}
COLUMNS |= {"completion_tokens": "int64", "thinking_tokens": "int64"}
COLUMNS |= {"response_tokens": "int64", "error": "string", "tries": "int64"}
COLUMNS |= {"started": "double", "time": "double"}
_NUMBERS = {"int64": int, "double": float}


@contextmanager
def open_journal(output: Path, job: dict[str, Any], count: int) -> Iterator["Journal"]:
    """Hold `output` for this process, and for this job of `count` prompts.

    Warns where the disk has no locks. Raises `RuntimeError` while another process holds
    the output, and `ValueError` for another job's records and another kind of file.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{output}: the output ends in .jsonl or .parquet")
    # Parquet can't be appended to.
    path = output if output.suffix == ".jsonl" else Path(f"{output}.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{output}.job", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process writes to {output}: end it") from None
        except OSError as error:  # Lustre and some network disks have no locks.
            why = f"{output} can't be locked ({error}): let one process only write it"
            warnings.warn(why, stacklevel=4)
        held = [str(p) for p in {output, path} if p.exists() and p.stat().st_size]
        if held:
            file.seek(0)
            _check_owner(file.read(), job, " and ".join(held))
        else:
            file.truncate(0)
            print(json.dumps(job), file=file, flush=True)
            os.fsync(file.fileno())
        if held and not path.exists():  # Go on with a finished Parquet file.
            with _replacing(path) as copy:
                copy.writelines(map(_line_of, read_records(output)))
        # Without a buffer: what could not be written must not be written later.
        with open(path, "ab", buffering=0) as records:
            yield Journal(output, records, count)
            os.fsync(records.fileno())


def _check_owner(stored: str, job: dict[str, Any], held: str) -> None:
    """Raise `ValueError` unless what both jobs know is equal; Ray knows less."""
    try:
        old = dict(json.loads(stored))
    except (ValueError, TypeError):  # empty, or torn by a power cut
        old = {}
    differ = [f"{k} was {old[k]}, is {v}" for k, v in job.items() if old.get(k, v) != v]
    if differ or old.keys().isdisjoint(job):
        why = f"the records of another job: {'; '.join(differ) or 'unknown'}"
        again = f", or delete {held} to start again" if old else ""
        raise ValueError(f"{held} holds {why}. Give another output{again}.")


class Journal:
    """Records by the index of their prompt, one a line, each there whole or not at all.

    `offsets` has where each prompt's record begins, the later one of two, or -1.
    """

    def __init__(self, output: Path, file: Any, count: int) -> None:
        self._output, self._file, self._path = output, file, Path(file.name)
        self.offsets = array("q", [-1]) * count
        self._end = self._next = 0  # whole lines' end; next index in order, or -1

    def __len__(self) -> int:
        return len(self.offsets) - self.offsets.count(-1)

    def load(self) -> Iterator[dict[str, Any]]:
        """Give the records, and cut off a torn line; `ValueError` for another file."""
        count, line = 0, b""
        with open(self._path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = read_record(line)
                if self._note(record["index"] if record else -1, line):
                    count += 1
                    yield record
        if not count and (self._end or line.startswith(b"[")):
            why = "holds no record of this job, a JSON object in each line"
            raise ValueError(f"{self._path} {why}: move {self._output}* away.")
        self._file.truncate(self._end)

    def _note(self, index: int, line: bytes) -> bool:
        """Note where a line begins; return True if it is the record of a prompt."""
        if is_known := index in range(len(self.offsets)):
            self.offsets[index] = self._end
        self._next = index + 1 if is_known and index == self._next else -1
        self._end += len(line)
        return is_known

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, or raise `OSError` and leave the file as it was."""
        line = left = _line_of(record)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self._end)
            error.filename = str(self._path)
            error.strerror += f". {len(self):,} records are safe: make room, call again"
            raise
        self._note(record["index"], line)

    def finish(self) -> None:
        """Leave the output with each record once, in the order of the prompts."""
        if self._next < 0:
            with _replacing(self._path) as copy, open(self._path, "rb") as file:
                for offset in self.offsets:
                    if offset >= 0:
                        file.seek(offset)
                        copy.write(file.readline())
        if self._path != self._output:
            _write_parquet(self._output, self._path)
            self._path.unlink()


def _write_parquet(output: Path, path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    # A column has one type. Ids of several become JSON, where 1 and "1" stay two.
    kinds = {type(record["id"]) for record in read_records(path)} - {type(None)}
    schema = pa.schema(COLUMNS | {"id": "int64" if kinds == {int} else "string"})
    schema = schema.with_metadata(_JSON_IDS if len(kinds) > 1 else None)
    records = read_records(path)
    with _replacing(output) as file, ParquetWriter(file, schema) as writer:
        while rows := list(islice(records, _ROWS)):
            for row in rows:
                if row["id"] is not None and len(kinds) > 1:
                    row["id"] = json.dumps(row["id"])
            writer.write_table(pa.Table.from_pylist(rows, schema))


def as_record(result: Any, started: float = 0.0) -> dict[str, Any]:
    """Return what stands in the file for a result of a run that `started` then."""
    record = {name: getattr(result, name, None) for name in COLUMNS}
    record["completion_tokens"] = result.tokens
    return record | {"started": started, "time": round(time.time(), 3)}


def larger_budget(record: dict[str, Any], room: int, retries: int) -> int:
    """Double the tokens of thinking that ran out if tries and room are left, else 0."""
    tokens = record["completion_tokens"]
    ran_out = record["finish_reason"] == "length" and record["response"] is None
    fits = record["prompt_tokens"] + tokens < room and record["tries"] <= retries
    return 2 * tokens if ran_out and fits else 0


def read_record(line: bytes) -> dict[str, Any] | None:
    """Read one line, also as pandas writes it (3.0, no nulls); None for a torn one."""
    try:
        found = json.loads(line)
        record = {name: found.get(name) for name in COLUMNS}
        for name, kind in COLUMNS.items():
            if kind in _NUMBERS:
                record[name] = _NUMBERS[kind](record[name] or 0)
        if isinstance(record["id"], float):
            record["id"] = int(record["id"])
        return record | {"index": int(found["index"])}
    except Exception:
        return None


def _line_of(record: dict[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 can't hold, becomes a question mark.
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, that takes the place of `path` if all goes well."""
    path = path.resolve()  # Replace a link's target, not the link.
    with open(f"{path}.tmp", "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # Or a power cut could leave an empty file.
    os.replace(file.name, path)


def read_records(output: str | PathLike) -> Iterator[dict[str, Any]]:
    """Read the records of a JSONL or Parquet file or URL, without torn ones."""
    import fsspec
    from pyarrow.parquet import ParquetFile

    with fsspec.open(str(output), "rb") as file:
        if str(output).endswith(".jsonl"):
            yield from filter(None, map(read_record, file))
            return
        table = ParquetFile(file)
        as_json = _JSON_IDS.items() <= (table.schema_arrow.metadata or {}).items()
        for batch in table.iter_batches(_ROWS):
            for row in batch.to_pylist():
                yield row | {"id": json.loads(row["id"] or "null")} if as_json else row


@contextmanager
def staged(output: str | PathLike) -> Iterator[Path]:
    """Give a local path to write `output` to; one for a URL is in the user's cache."""
    if "://" not in str(output):  # Object stores can't append.
        yield Path(output).expanduser()
        return
    import fsspec

    files, there = fsspec.url_to_fs(str(output))
    local = CACHE / fsspec.utils.tokenize(str(output)) / there.rpartition("/")[2]
    local.parent.mkdir(parents=True, exist_ok=True)
    here, away = [f"{local}.job", str(local)], [f"{there}.job", there]
    if not local.exists() and files.exists(there):
        files.get(away, here)
    yield local
    files.put(here, away)
    shutil.rmtree(local.parent)
