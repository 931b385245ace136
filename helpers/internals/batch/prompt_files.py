"""The prompts of a batch, from a list or a file, in order and a few at a time.

In goes a list, or the path or URL of JSONL or Parquet. Out comes one `Prompt` for each
row, and a digest of them all. This module knows nothing of engines and of output files.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from os import PathLike
from typing import Any

from .fingerprint import encode_value
from .prompts import KEYS, Prompt, to_prompt

_ENDING = re.compile(r"\.((jsonl|ndjson)(\.(gz|xz|bz2))?|parquet)$")
_ROWS = 1024  # of Parquet in memory at once


class PromptSource:
    """Prompts that can be gone through more than once, a few at a time.

    `template` holds the `chat_template_kwargs` of all prompts. A file is counted once;
    rows that are added to it later are not taken.

    Raises `TypeError` for what is no list of prompts, `ValueError` for a kind of file
    that is not read, `OSError` for one that can't be opened.
    """

    def __init__(
        self,
        prompts: "str | PathLike | Iterable[Any]",
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self._template = template or {}
        self._path = _checked_path(prompts) if is_file(prompts) else ""
        self._list = [] if self._path else _checked_list(prompts)
        self._digest = blake2b(digest_size=8)
        self._count = len(self._list)
        if self._path:
            self._count = _scan(self._path, self._digest)

    def __len__(self) -> int:
        return self._count

    @property
    def job(self) -> dict[str, Any]:
        """The number of prompts and a digest of their values."""
        digest = self._digest.copy()
        for given in self._list:
            try:
                digest.update(encode_value(given) + b"\n")
            except (TypeError, ValueError) as error:  # It is refused in these words.
                digest.update(str(error).encode())
        return {"prompts": len(self), "prompts_hash": digest.hexdigest()}

    def __iter__(self) -> Iterator[Prompt]:
        seen: set[Any] = set()
        rows = _read(self._path) if self._path else self._list
        index = -1
        for index, given in enumerate(islice(rows, self._count)):
            prompt = to_prompt(index, given, self._template)
            if prompt.id in seen:
                why = f"the id {prompt.id!r} is that of an earlier prompt."
                prompt = Prompt(index, prompt.given, id=prompt.id, refused=why)
            elif prompt.id is not None:
                seen.add(prompt.id)
            yield prompt
        for gone in range(index + 1, self._count):
            yield Prompt(gone, None, refused="this row was taken out of the file.")


def is_file(prompts: Any) -> bool:
    """Return True for a path, and for a text that can only be the name of a file."""
    if not isinstance(prompts, str):
        return isinstance(prompts, PathLike)
    if "\n" in prompts:
        return False
    known = _ENDING.search(_file_name(prompts)) or os.path.isdir(prompts)
    return bool(known or re.search(r"^\S+\.\w{2,8}(\?\S*)?$", prompts))


def _file_name(path: str) -> str:
    """Return a path, or a URL without its query, in small letters."""
    return (path.partition("?")[0] if "://" in path else path).lower()


def _checked_list(prompts: Any) -> list[Any]:
    """Return prompts as a list. Raises `TypeError` for what is something else."""
    if isinstance(prompts, str | bytes | Mapping):
        raise TypeError("prompts is a list: put a single prompt in brackets, [prompt]")
    if hasattr(prompts, "columns"):  # Iterating a DataFrame gives column names.
        raise TypeError(
            f"prompts is a list, not a {type(prompts).__name__}: pass the column that "
            "holds them, such as df['question']"
        )
    prompts = list(prompts)
    if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
        raise TypeError("this is one chat: put its messages in brackets, [messages]")
    return prompts


def _checked_path(path: "str | PathLike") -> str:
    """Return the path or URL of a file of prompts. Raises `ValueError` for another."""
    path = os.path.expanduser(path)
    if not _ENDING.search(_file_name(path)) or os.path.isdir(path):
        kind = _file_name(path).rpartition(".")[2]
        hint = f"pandas.read_{kind}(...)" if kind in ("json", "csv") else "pandas"
        raise ValueError(
            f"{path}: a file of prompts ends in .jsonl or .parquet; {hint} and "
            '.to_json("prompts.jsonl", orient="records", lines=True) make one.'
        )
    return path


def _open(path: str) -> Any:
    import fsspec
    from fsspec.utils import infer_compression

    return fsspec.open(path, "rb", compression=infer_compression(_file_name(path)))


def _scan(path: str, digest: Any) -> int:
    """Count the prompts of a file, and add its content to a digest."""
    with _open(path) as file:
        if not _file_name(path).endswith(".parquet"):
            count = 0
            for _, line in _lines(file):
                digest.update(line)
                count += 1
            return count
        from pyarrow.parquet import ParquetFile

        count = ParquetFile(file).metadata.num_rows
        _columns(path, ParquetFile(file).schema_arrow.names)
        file.seek(0)
        while block := file.read(2**20):
            digest.update(block)
        return count


def _read(path: str) -> Iterator[Any]:
    """Read the rows of a file; a line that can't be read comes as a `ValueError`."""
    with _open(path) as file:
        if _file_name(path).endswith(".parquet"):
            from pyarrow.parquet import ParquetFile

            table = ParquetFile(file)
            columns = _columns(path, table.schema_arrow.names)
            for batch in table.iter_batches(_ROWS, columns=columns):
                yield from map(_without_nulls, batch.to_pylist())
            return
        for number, line in _lines(file):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ValueError(f"line {number} is not valid JSON: {error}")


def _columns(path: str, there: list[str]) -> list[str]:
    columns = [c for c in (*KEYS, "custom_id", "body", "url") if c in there]
    if not {"prompt", "messages", "body"} & set(columns):
        raise ValueError(
            f"{path} has no column prompt, messages or body, but "
            f"{', '.join(there)}: rename the one that holds the prompts."
        )
    return columns


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    """Read the lines that are not blank, with their numbers. Raises `ValueError`."""
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("the file of prompts is UTF-16: save it as UTF-8.")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def _without_nulls(value: Any) -> Any:
    """Drop what is null: Parquet gives every row all fields that any row has.

    Text that the file does not mark as UTF-8 comes as bytes.
    """
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
