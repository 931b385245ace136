"""What decides a job's answers, as plain values that two runs can compare.

In go a model's path, a chat template, prompts; out come names, commits and digests.
Everything counts by its value, an array by its numbers; what has none is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from hashlib import blake2b
from inspect import getdoc
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...models import cached_name, find_model
from ..engine.sampling_params import plain_values
from ..thinking.families import unwrap_tokenizer

_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})\b")
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth"}
_TEXTS = {".json", ".jinja", ".txt", ".model", ".py"}  # tokenizer, template, config


def is_null(value: Any) -> bool:
    """Return True for None, NaN, and the nothing of pandas and pyarrow."""
    is_plain = isinstance(value, str | list | dict)  # To write them out takes time.
    return not is_plain and str(value) in ("None", "nan", "NaT", "<NA>")


def _by_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, Series, tensors and their numbers
        return value.tolist()
    if hasattr(value, "as_py"):  # pyarrow's values
        return value.as_py()
    if is_null(value):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):  # text of Parquet without its mark
        return value.decode()
    if hasattr(value, "__struct_fields__"):  # SamplingParams
        return plain_values(value)
    if is_dataclass(value):  # their structured_outputs
        return {k: v for k, v in vars(value).items() if not k.startswith("_")}
    if callable(value) and value.__doc__:  # tools=[function]
        schema = TypeAdapter(value).json_schema()
        about = {"name": value.__name__, "description": getdoc(value)}
        return {"type": "function", "function": about | {"parameters": schema}}
    raise ValueError(f"a {type(value).__name__} can't be compared by value: use text")


def _encode_json(value: Any, **options: Any) -> bytes:
    return json.dumps(value, default=_by_value, ensure_ascii=False, **options).encode()


def plain_value(value: Any) -> Any:
    """Copy a value into dicts, lists, texts and numbers, or raise what says why not."""
    return json.loads(_encode_json(value))


def digest_of(prompts: Iterable[Any]) -> dict[str, Any]:
    """Return the number of prompts, and a digest that is the same for equal ones."""
    count, digest = 0, blake2b(digest_size=8)
    for prompt in prompts:
        count += 1
        try:
            # Keys of two kinds can't be sorted before they are JSON's.
            digest.update(_encode_json(plain_value(prompt), sort_keys=True) + b"\n")
        except Exception as error:  # It is refused in these words.
            digest.update(str(error).encode())
    return {"prompts": count, "prompts_hash": digest.hexdigest()}


def short_digest(*parts: bytes) -> str:
    """Return 16 hex digits of a digest of these bytes."""
    return blake2b(b"".join(parts), digest_size=8).hexdigest()


def job_of(path: str, revision: str | None = None, **known: Any) -> dict[str, Any]:
    """Return what decides a batch's answers: `known`, and the model's name and files.

    Files from the hub count by their commit. In a folder weights count by size and
    time; tokenizer, chat template and configuration by their content.
    """
    spec, folder, marks = find_model(path), Path(path), []
    name = spec.name if spec else cached_name(path) or path
    if not folder.exists() and not _COMMIT.search(path):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "config.json", revision=revision)
        folder = Path(found).parent if isinstance(found, str) else folder
    if commit := _COMMIT.search(str(folder)):
        return plain_value({"model": name, "files": commit[1], **known})
    if folder.is_dir() and not spec:
        name = str(folder.resolve())
    for file in sorted(folder.glob("*")) or [folder]:
        if file.suffix in _TEXTS and file.is_file():
            marks.append(file.name.encode() + file.read_bytes())
        elif file.suffix in _WEIGHTS and file.exists():
            facts = file.stat()
            marks.append(f"{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return plain_value({"model": name, "files": short_digest(*marks), **known})


def template_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `chat_template_kwargs` as plain values. Raises `ValueError`."""
    try:
        found = plain_value(dict(given or {}))
    except Exception as error:
        why = "chat_template_kwargs are a dict, such as {'enable_thinking': False}"
        raise ValueError(f"{why}: {error}") from error
    if not isinstance(found.get("enable_thinking", True), bool):
        raise ValueError("chat_template_kwargs: enable_thinking is True or False.")
    return found


def template_text(tokenizer: Any, name: str | None = None) -> str | None:
    """Return the chat template of this name, or the only one; None for one in code.

    Raises the tokenizer's `ValueError` where there is none, or several without a name.
    """
    try:
        return unwrap_tokenizer(tokenizer).get_chat_template(name)
    except (AttributeError, NotImplementedError):  # mistral-common's
        return None
