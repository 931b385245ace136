"""The records of a batch on disk, where they survive whatever ends the process.

They are appended as completions finish, and sorted when all are there, in one step
that either happens or does not. Beside the file lies `<output>.job`, which says whose
job the records are, and is locked while a process writes.
"""

import fcntl
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

_SYNC_SECONDS = 5.0  # A power cut loses at most the records of this long.
_ROWS = 1024  # of Parquet in memory at once
# What a record has, and its type in Parquet.
COLUMNS = {
    "index": "int64",
    **dict.fromkeys(("id", "prompt_hash", "thinking", "response"), "string"),
    "complete": "bool",
    "finish_reason": "string",
    **dict.fromkeys(("prompt_tokens", "completion_tokens"), "int64"),
    **dict.fromkeys(("thinking_tokens", "response_tokens"), "int64"),
    "error": "string",
    "tries": "int64",
    "time": "double",
}


class JobMismatchError(ValueError):
    """The output holds the records of another job."""


class JobLockedError(RuntimeError):
    """Another process writes to the same output."""


def journal_path(output: Path) -> Path:
    """Where the records are kept until the job is done: Parquet can't be appended to.

    Raises `ValueError` for an output that is neither JSONL nor Parquet.
    """
    if output.suffix == ".jsonl":
        return output
    if output.suffix == ".parquet":
        return output.with_name(output.name + ".jsonl")
    raise ValueError(f"{output}: the output ends in .jsonl or .parquet")


@contextmanager
def claim(output: Path, job: Mapping[str, Any]) -> Iterator[None]:
    """Hold `output` for this process, and for this job.

    Raises `JobLockedError` while another process holds it, `JobMismatchError` where it
    holds records of a job that differs, `ValueError` for a kind of file that is neither
    JSONL nor Parquet.
    """
    journal, path = journal_path(output), output.with_name(output.name + ".job")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobLockedError(
                f"another process writes to {output}: wait for it, end it, or give "
                "another output."
            ) from None
        file.seek(0)
        before = file.read()
        if any(p.exists() and p.stat().st_size for p in (output, journal)):
            _compare(output, before, job)
        else:
            file.truncate(0)
            file.write(json.dumps(job, indent=1, default=repr))
            file.flush()
            _sync(path)
            _sync(path.parent)
        yield


def _compare(output: Path, before: str, job: Mapping[str, Any]) -> None:
    """Raise `JobMismatchError` unless `output` belongs to this job."""
    try:
        stored = json.loads(before)
    except ValueError:
        raise JobMismatchError(
            f"{output} is there, and no job of run_batch wrote it: give another output."
        ) from None
    wanted = json.loads(json.dumps(job, default=repr))
    keys = [k for k in sorted({*stored, *wanted}) if stored.get(k) != wanted.get(k)]
    differ = [f"{key} was {stored.get(key)}, is {wanted.get(key)}" for key in keys]
    if differ:
        held = [p for p in dict.fromkeys((output, journal_path(output))) if p.exists()]
        raise JobMismatchError(
            f"{output} holds the records of another job: {'; '.join(differ)}. Give "
            f"another output, or delete {' and '.join(map(str, held))} to start anew."
        )


class Journal:
    """Records by the index of their prompt, one a line, each there whole or not at all.

    `count` is how many prompts the job has. A torn last line is cut off as the file is
    loaded; what else can't be read is left out when it is sorted, and its prompts run
    again. Of two records for one prompt the later counts.
    """

    def __init__(self, output: Path, count: int) -> None:
        self.path = journal_path(output)
        self._output = output
        if output.exists() and not self.path.exists():  # A finished Parquet file.
            with _replacing(self.path) as temporary, open(temporary, "wb") as file:
                file.writelines(_line(record) for record in read_records(output))
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._offsets = array("q", [-1]) * count
        self._end = 0  # of the last whole line, in bytes
        self._lines = 0
        self._synced = time.monotonic()

    def load(self) -> Iterator[dict[str, Any]]:
        """Give the records that are there, and make the file ready for more."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = _record(line, len(self._offsets))
                if record is not None:
                    self._offsets[record["index"]] = self._end
                    yield record
                self._end += len(line)
                self._lines += 1
        os.ftruncate(self._fd, self._end)

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, or raise `OSError` and leave the file as it was."""
        line = _line(record)
        data, position = memoryview(line), self._end
        try:
            while data:
                written = os.pwrite(self._fd, data, position)
                position, data = position + written, data[written:]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._fd)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            safe = sum(offset >= 0 for offset in self._offsets)
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno)}. {safe:,} records are safe: make room and "
                "run the same call again, which goes on from there",
                str(self.path),
            ) from error
        self._offsets[record["index"]] = self._end
        self._end += len(line)
        self._lines += 1

    def lines(self) -> Iterator[bytes]:
        """The line of each record, in the order of the prompts."""
        with open(self._fd, "rb", closefd=False) as file:
            for offset in self._offsets:
                if offset >= 0:
                    file.seek(offset)
                    yield file.readline()

    def finish(self) -> None:
        """Leave the output with all records in the order of their prompts, each once.

        Raises `OSError` where there is no room for it, and leaves the records as safe
        as they were.
        """
        ascend = all(a < b for a, b in pairwise(self._offsets))
        if self.path != self._output:
            self._write_parquet()
            self.path.unlink()
        elif self._lines > len(self._offsets) or not ascend:
            with _replacing(self.path) as temporary, open(temporary, "wb") as file:
                file.writelines(self.lines())
        else:
            os.fsync(self._fd)

    def _write_parquet(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        # A Parquet column has one type: ids that are not all int64 become strings.
        ids = (json.loads(line)["id"] for line in self.lines())
        numbers = all(i is None or type(i) is int and abs(i) < 2**63 for i in ids)
        schema = pa.schema({**COLUMNS, "id": "int64" if numbers else "string"})
        lines = self.lines()
        with _replacing(self._output) as file, ParquetWriter(file, schema) as writer:
            while rows := [json.loads(line) for line in islice(lines, _ROWS)]:
                for row in rows if not numbers else ():
                    row["id"] = None if row["id"] is None else str(row["id"])
                writer.write_table(pa.Table.from_pylist(rows, schema))

    def close(self) -> None:
        os.close(self._fd)


def _record(line: bytes, count: int) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not COLUMNS.keys() <= record.keys():
        return None
    index = record["index"]
    return record if isinstance(index, int) and index in range(count) else None


def _line(record: dict[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 can't hold, becomes a question mark.
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, that takes the place of `path` if all goes well."""
    path = path.resolve()  # Replace a link's target, not the link.
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _sync(temporary)  # Or a power cut could leave an empty file.
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk itself."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_records(output: str | PathLike) -> Iterator[dict[str, Any]]:
    """The records of a JSONL or Parquet file, by path or URL, one after the other."""
    import fsspec

    with fsspec.open(str(output), "rb") as file:
        if str(output).endswith(".jsonl"):
            yield from map(json.loads, file)
            return
        from pyarrow.parquet import ParquetFile

        for batch in ParquetFile(file).iter_batches(_ROWS):
            yield from batch.to_pylist()


@contextmanager
def staged(output: str | PathLike) -> Iterator[Path]:
    """A local path to write to for `output`, which may be a URL that fsspec knows.

    Object stores can't append, so that a job for one stays in the user's cache until it
    is done, and goes there as a whole.
    """
    if "://" not in str(output):
        yield Path(output).expanduser()
        return
    import fsspec

    files, there = fsspec.url_to_fs(str(output))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    key = blake2b(str(output).encode(), digest_size=8).hexdigest()
    folder = cache / "fast-inference-notebooks" / key
    folder.mkdir(parents=True, exist_ok=True)
    local = folder / there.rpartition("/")[2]
    here, away = [str(local), f"{local}.job"], [there, f"{there}.job"]
    if not any(folder.iterdir()) and files.exists(there):
        try:
            files.get(away, here)
        except BaseException:
            shutil.rmtree(folder)  # A partial copy would look like the records.
            raise
    yield local
    files.put(here, away)
    shutil.rmtree(folder)
