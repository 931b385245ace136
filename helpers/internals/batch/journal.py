"""The records of a batch on disk, where they survive whatever ends the process.

In go plain records, each appended as its completion finishes; when all are there they
are sorted, in one step that either happens or does not. Beside the file lies
`<output>.job`: a line that says whose job the records are, then one for each time that
it was started. It is locked while a process writes. This module knows nothing of
prompts and engines.
"""

import fcntl
import json
import os
import re
import shutil
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
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
    **dict.fromkeys(("id", "thinking", "response"), "string"),
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
def claim(output: Path, job: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Hold `output` for this process, and for this job; give what notes a start of it.

    Warns where the disk has no locks. Raises `JobLockedError` while another process
    holds the output, `JobMismatchError` where it holds records of a job that differs,
    `ValueError` for a kind of file that is neither JSONL nor Parquet.
    """
    journal, path = journal_path(output), job_path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobLockedError(
                f"another process writes to {output}: wait for it, end it, or give "
                "another output."
            ) from None
        except OSError as error:  # Lustre and some network disks have no locks.
            _warn_of_disk(
                f"can't be locked ({error}): let only one process write to it"
            )

        def add_line(line: Mapping[str, Any]) -> None:
            file.write("\n" + json.dumps(line))  # The line before may be torn.
            file.flush()
            _sync(path)

        if any(p.exists() and p.stat().st_size for p in (output, journal)):
            file.seek(0)
            _compare(output, next(filter(str.strip, file), ""), job)
        else:
            file.truncate(0)
            add_line(job)
            _sync(path.parent)
        yield lambda: add_line({"started": time.time()})


def _warn_of_disk(what: str) -> None:
    warnings.warn(f"the disk of the output {what}.", stacklevel=3)


def job_path(output: "str | PathLike") -> Path:
    """Return where the job of an output is written."""
    return Path(output).with_name(Path(output).name + ".job")


def _compare(output: Path, before: str, job: Mapping[str, Any]) -> None:
    """Raise `JobMismatchError` unless `output` belongs to this job.

    What only one of the two knows is not compared: Ray's workers know the precision.
    """
    try:
        stored = dict(json.loads(before))
    except (ValueError, TypeError):
        raise JobMismatchError(
            f"{output} is there, and no job of run_batch wrote it: give another output."
        ) from None
    keys = [k for k in sorted(stored.keys() & job.keys()) if stored[k] != job[k]]
    if keys or not stored.keys() & job.keys():
        held = [p for p in dict.fromkeys((output, journal_path(output))) if p.exists()]
        differ = [f"{key} was {stored[key]}, is {job[key]}" for key in keys]
        raise JobMismatchError(
            f"{output} holds the records of another job: {'; '.join(differ)}. Give "
            f"another output, or delete {' and '.join(map(str, held))} to start again."
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

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] >= 0

    def __len__(self) -> int:
        return sum(offset >= 0 for offset in self._offsets)

    def load(self) -> Iterator[dict[str, Any]]:
        """Give the records that are there, and make the file ready for more."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = read_record(line)
                if record and record["index"] in range(len(self._offsets)):
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
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno)}. {len(self):,} records are safe: make "
                "room and run the same call again, which goes on from there",
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

        # A Parquet column has one type: ids that are not all int64 become strings, and
        # JSON where 1 and "1" would be one.
        ids = {json.loads(line)["id"] for line in self.lines()} - {None}
        numbers = all(type(i) is int and abs(i) < 2**63 for i in ids)
        as_text = str if len(set(map(str, ids))) == len(ids) else json.dumps
        schema = pa.schema({**COLUMNS, "id": "int64" if numbers else "string"})
        lines = map(read_record, self.lines())
        with _replacing(self._output) as file, ParquetWriter(file, schema) as writer:
            while rows := list(islice(lines, _ROWS)):
                for row in rows if not numbers else ():
                    row["id"] = None if row["id"] is None else as_text(row["id"])
                writer.write_table(pa.Table.from_pylist(rows, schema))

    def close(self) -> None:
        os.close(self._fd)


def as_record(result: Any) -> dict[str, Any]:
    """Return what stands in the file for a result; `time` is in seconds since 1970."""
    record = {name: getattr(result, name, None) for name in COLUMNS}
    return record | {"completion_tokens": result.tokens, "time": round(time.time(), 3)}


def read_record(line: bytes | str) -> dict[str, Any] | None:
    """Read one line; None for one that is torn or damaged.

    pandas, which some people edit their answers with, leaves out columns that are null
    and writes whole numbers as 3.0.
    """
    try:
        found = json.loads(line)
        record = {name: found.get(name) for name in COLUMNS}
        for name, kind in COLUMNS.items():
            if kind == "int64":
                record[name] = int(record[name] or 0)
        return record if found["index"] is not None else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


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
    except OSError as error:
        if not path.is_dir():
            raise
        # Some network disks (CIFS, FUSE) can't; a power cut may lose the file's name.
        _warn_of_disk(f"can't secure names of files ({error}): copy it elsewhere, too")
    finally:
        os.close(fd)


def read_records(output: str | PathLike) -> Iterator[dict[str, Any]]:
    """Read the records of a JSONL or Parquet file or URL, without torn ones."""
    import fsspec

    with fsspec.open(str(output), "rb") as file:
        if str(output).endswith(".jsonl"):
            yield from filter(None, map(read_record, file))
            return
        from pyarrow.parquet import ParquetFile

        for batch in ParquetFile(file).iter_batches(_ROWS):
            yield from batch.to_pylist()


def read_starts(output: str | PathLike) -> list[float]:
    """Return when the job of an output was started, in seconds since 1970."""
    import fsspec

    try:
        with fsspec.open(f"{output}.job", "rb") as file:
            return list(map(float, re.findall(rb'{"started": ([0-9.]+)}', file.read())))
    except OSError:
        return []


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
