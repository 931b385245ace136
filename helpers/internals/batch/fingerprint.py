"""What decides a job's answers, as plain values that two runs can compare.

In go a model's path, a chat template, prompts; out come names, commits and digests.
Everything counts by its value: an array by its numbers, a function by the JSON schema
that transformers makes of it. What has no value to compare is refused. This module
knows nothing of engines and of output files.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...models import cached_name, find_model
from ..engine.sampling_params import Sampling
from ..thinking.families import unwrap_tokenizer

_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})\b")
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth"}
_TEXTS = {".json", ".jinja", ".txt", ".model", ".py"}  # tokenizer, template, config


def plain_value(value: Any) -> Any:
    """Return lists, dicts, texts and numbers that are equal where `value` is.

    Raises as `encode_value` does.
    """
    return json.loads(encode_value(value))


def encode_value(value: Any) -> bytes:
    """Return bytes that are the same for equal values.

    Raises `TypeError` for what has no value to compare, and `ValueError` for text that
    is none.
    """
    try:
        return _encoder()(value)
    except OverflowError:  # a number of more than 64 bits
        return repr(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has half of a character ({error.object[error.start]!r}, a lone "
            "surrogate), as text that was cut or decoded wrongly has: take it out, "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from None
    except RecursionError:
        raise TypeError("a list or dict that contains itself has no value") from None


@cache
def _encoder() -> Any:
    import msgspec

    return msgspec.json.Encoder(enc_hook=_by_value, order="deterministic").encode


def _by_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays, Series, tensors and their numbers
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__struct_fields__"):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if callable(value):  # tools=[function]
        from transformers.utils import get_json_schema

        try:
            return get_json_schema(value)
        except Exception as error:
            raise TypeError(f"a tool needs types and a docstring: {error}") from error
    raise TypeError(
        f"a {type(value).__name__} can't be compared by its value: pass text, numbers, "
        "lists or dicts"
    )


def short_digest(*parts: bytes) -> str:
    """Return 16 hex digits of a digest of these bytes."""
    return blake2b(b"".join(parts), digest_size=8).hexdigest()


def model_facts(path: str, revision: str | None = None) -> dict[str, Any]:
    """Return the model's name and what its weights, tokenizer and template are.

    Weights from the hub count by their commit. Those of a folder count by size and time
    of each file; tokenizer, chat template and configuration by their content.
    """
    spec = find_model(path)
    name = spec.name if spec else cached_name(path) or path
    folder = Path(path)
    if not folder.exists() and not _COMMIT.search(path):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "config.json", revision=revision)
        folder = Path(found).parent if isinstance(found, str) else folder
    if commit := _COMMIT.search(str(folder)):
        return {"model": name, "weights": commit[1]}
    if folder.is_dir() and not spec:
        name = str(folder.resolve())
    files = sorted(folder.iterdir() if folder.is_dir() else [folder])
    weights, texts = [], []
    for file in files:
        if file.suffix in _WEIGHTS and file.exists():
            found = file.stat()
            weights.append(f"{file.name} {found.st_size} {found.st_mtime_ns}".encode())
        elif file.suffix in _TEXTS and file.is_file():
            texts.append(file.name.encode() + file.read_bytes())
    return {
        "model": name,
        "weights": short_digest(*weights),
        "tokenizer and configuration": short_digest(*texts),
    }


def template_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `chat_template_kwargs` as plain values, a tool's function as its schema.

    Raises `ValueError`.
    """
    if not isinstance(given, Mapping | None):
        raise ValueError(
            "chat_template_kwargs are a dict, such as {'enable_thinking': False}, not "
            f"{type(given).__name__}."
        )
    try:
        return plain_value(dict(given or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"bad chat_template_kwargs: {error}") from error


def template_text(tokenizer: Any, name: str | None = None) -> str | None:
    """Return the chat template of this name, or the only one; None for one in code.

    Raises `ValueError` for a tokenizer without one, for several of which none is named,
    and for one that can't be compiled.
    """
    from jinja2 import TemplateSyntaxError

    tokenizer = unwrap_tokenizer(tokenizer)
    several = getattr(tokenizer, "chat_template", None)
    try:
        text = tokenizer.get_chat_template(name)
    except (AttributeError, NotImplementedError):  # mistral-common's
        return None
    except ValueError as error:
        raise ValueError(
            "the tokenizer has several chat templates: choose one by "
            f"chat_template_kwargs={{'chat_template': NAME}}, of {sorted(several)}."
            if several
            else "the tokenizer has no chat template: use a model trained for chats, "
            "or set tokenizer.chat_template"
        ) from error
    try:
        hello = [{"role": "user", "content": "Hello"}]
        tokenizer.apply_chat_template(hello, chat_template=text, tokenize=False)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"the tokenizer's chat template can't be compiled: {error} (line "
            f"{error.lineno}). Correct tokenizer.chat_template, or load it again."
        ) from error
    except Exception:  # It needs more than a message: tools, say.
        pass
    return text


def job_of(
    path: str,
    revision: str | None,
    sampling: Sampling,
    template: Mapping[str, Any] | None,
    room: int,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """Return what the answers of a batch depend on, beside its prompts."""
    job = {
        **model_facts(path, revision),
        "sampling_params": sampling.resolved,
        "chat_template_kwargs": template or {},
        "context": room,
    }
    if chat_template:
        job["chat_template"] = short_digest(chat_template.encode())
    return plain_value(job)
