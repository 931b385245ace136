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

# At the end of a path, or before the query of a URL.
_KIND = re.compile(r"\.(?:(?:jsonl|ndjson)(?:\.(?:gz|xz|bz2))?|parquet)(?=$|\?\S*$)")
_ROWS = 1024  # of Parquet in memory at once


class PromptSource:
    """Prompts that can be gone through more than once, a few at a time.

    `template` holds the `chat_template_kwargs` of all prompts. `job` has the number of
    prompts and a digest of their values. Rows that are added to a file later are not
    taken.

    Raises `TypeError` for what is no list of prompts, `ValueError` for a kind of file
    that is not read, `OSError` for one that can't be opened.
    """

    def __init__(
        self,
        prompts: "str | PathLike | Iterable[Any]",
        template: Mapping[str, Any] | None = None,
    ) -> None:
        is_file = isinstance(prompts, str | PathLike)
        self._given = _checked_path(prompts) if is_file else _checked_list(prompts)
        self._template = template or {}
        self._count, digest = 0, blake2b(digest_size=8)
        for given in self._rows():
            self._count += 1
            try:
                digest.update(encode_value(given) + b"\n")
            except Exception as error:  # It is refused in these words.
                digest.update(str(error).encode())
        self.job = {"prompts": self._count, "prompts_hash": digest.hexdigest()}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prompt]:
        seen, index = set(), -1
        for index, given in enumerate(islice(self._rows(), self._count)):
            prompt = to_prompt(index, given, self._template)
            if prompt.id is not None and prompt.id in seen:
                why = f"the id {prompt.id!r} is that of an earlier prompt."
                prompt = Prompt(index, given, id=prompt.id, refused=why)
            seen.add(prompt.id)
            yield prompt
        for gone in range(index + 1, self._count):
            yield Prompt(gone, None, refused="this row was taken out of the file.")

    def _rows(self) -> Iterable[Any]:
        return _read(self._given) if isinstance(self._given, str) else self._given


def _checked_list(prompts: Any) -> list[Any]:
    """Return prompts as a list. Raises `TypeError` for what is something else."""
    if isinstance(prompts, bytes | Mapping):
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
    if not _KIND.search(path.lower()) or os.path.isdir(path):
        raise ValueError(
            f"{path[:80]!r} is not a file of prompts. Those end in .jsonl or .parquet; "
            'pandas makes one by .to_json("prompts.jsonl", orient="records", '
            "lines=True). A single prompt goes in brackets, [prompt]."
        )
    return path


def _read(path: str) -> Iterator[Any]:
    """Read the rows of a file; a line that can't be read comes as a `ValueError`."""
    import fsspec
    from fsspec.utils import infer_compression

    kind = _KIND.search(path.lower())[0]
    with fsspec.open(path, "rb", compression=infer_compression(kind)) as file:
        if kind == ".parquet":
            yield from _read_parquet(file)
            return
        for number, line in enumerate(file, start=1):
            try:
                # Windows begins a file with a mark of its own.
                if text := line.decode("utf-8-sig").strip():
                    yield json.loads(text)
            except (ValueError, RecursionError) as error:
                yield ValueError(f"line {number} is not valid JSON in UTF-8: {error}")


def _read_parquet(file: Any) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    there = table.schema_arrow.names
    columns = [c for c in (*KEYS, "custom_id", "body", "url") if c in there]
    if not {"prompt", "messages", "body"} & set(columns):
        raise ValueError(
            "the file of prompts has no column prompt, messages or body, but "
            f"{', '.join(there)}: rename the one that holds them."
        )
    for batch in table.iter_batches(_ROWS, columns=columns):
        yield from map(_without_nulls, batch.to_pylist())


def _without_nulls(value: Any) -> Any:
    """Drop what is null: Parquet gives every row all fields that any row has."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
