"""What decides a job's answers, as plain values that two runs can compare.

In go a model's path, a chat template, prompts; out come names, commits and digests.
Everything counts by its value: an array by its numbers, a function by the JSON schema
that transformers makes of it. What has no value to compare is refused.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...models import cached_name, find_model
from ..engine.sampling_params import plain_values
from ..thinking.families import unwrap_tokenizer

_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})\b")
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth"}
_TEXTS = {".json", ".jinja", ".txt", ".model", ".py"}  # tokenizer, template, config


def _by_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, Series, tensors and their numbers
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):  # text of Parquet without its mark
        return value.decode()
    if hasattr(value, "__struct_fields__"):  # SamplingParams
        return plain_values(value)
    if is_dataclass(value):  # their structured_outputs
        return {k: v for k, v in vars(value).items() if not k.startswith("_")}
    if callable(value):  # tools=[function]
        return _tool_schema(value)
    raise TypeError(
        f"a {type(value).__name__} can't be compared by its value: pass text, numbers, "
        "lists or dicts"
    )


def _tool_schema(function: Any) -> dict[str, Any]:
    """Return transformers' JSON schema, or without words on arguments pydantic's."""
    from pydantic import TypeAdapter
    from transformers.utils import chat_template_utils as tools

    try:
        return tools.get_json_schema(function)
    except tools.DocstringParsingException:
        if not function.__doc__:
            raise
    own = {"name": function.__name__, "description": inspect.getdoc(function)}
    own["parameters"] = TypeAdapter(function).json_schema()
    return {"type": "function", "function": own}


_IN_ORDER = json.JSONEncoder(default=_by_value, ensure_ascii=False)
_SORTED = json.JSONEncoder(default=_by_value, ensure_ascii=False, sort_keys=True)


def encode_value(value: Any) -> bytes:
    """Return bytes that are the same for equal values.

    Raises `TypeError`, `ValueError`, or what transformers raises for a function, where
    there is no value to compare, as in text with half of a character.
    """
    return _SORTED.encode(value).encode()


def plain_value(value: Any) -> Any:
    """Copy a value into dicts, lists, texts and numbers. Raises as `encode_value`."""
    return json.loads(_IN_ORDER.encode(value).encode())


def short_digest(*parts: bytes) -> str:
    """Return 16 hex digits of a digest of these bytes."""
    return blake2b(b"".join(parts), digest_size=8).hexdigest()


def job_of(path: str, revision: str | None = None, **known: Any) -> dict[str, Any]:
    """Return what decides a batch's answers: `known`, and the model's name and files.

    Files from the hub count by their commit. In a folder weights count by size and
    time; tokenizer, chat template and configuration by their content.
    """
    spec, folder = find_model(path), Path(path)
    name = spec.name if spec else cached_name(path) or path
    if not folder.exists() and not _COMMIT.search(path):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "config.json", revision=revision)
        folder = Path(found).parent if isinstance(found, str) else folder
    if commit := _COMMIT.search(str(folder)):
        return plain_value({"model": name, "files": commit[1], **known})
    if folder.is_dir() and not spec:
        name = str(folder.resolve())
    marks = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if file.suffix in _TEXTS and file.is_file():
            marks.append(file.name.encode() + file.read_bytes())
        elif file.suffix in _WEIGHTS and file.exists():
            facts = file.stat()
            marks.append(f"{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return plain_value({"model": name, "files": short_digest(*marks), **known})


def template_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `chat_template_kwargs` as plain values. Raises `ValueError`."""
    try:
        return plain_value(dict(given or {}))
    except Exception as error:
        raise ValueError(
            "chat_template_kwargs are a dict of plain values and of functions with "
            f"types and a docstring, such as {{'enable_thinking': False}}: {error}"
        ) from error


def template_text(tokenizer: Any, name: str | None = None) -> str | None:
    """Return the chat template of this name, or the only one; None for one in code.

    Raises the tokenizer's `ValueError` where there is none, or several without a name.
    """
    try:
        return unwrap_tokenizer(tokenizer).get_chat_template(name)
    except (AttributeError, NotImplementedError):  # mistral-common's
        return None
