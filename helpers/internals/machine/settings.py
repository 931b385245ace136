"""What a user may set in `.env` or in the environment, read and checked in one place.

The fields of `Settings` are all of it; `.env.example` says what each one means.
"""

import contextlib
import difflib
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream

AUTO = "auto"
LOG_LEVELS = ("debug", "info", "warning", "error")
DEVICES = (AUTO, "cpu", "cuda")
_TRUTH_VALUES = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
    AUTO: None,
}
# What other programs write for a missing token.
_NO_TOKEN = ("none", "null")
# Which library reads variables with this prefix, most of them only when imported.
_READ_BY = {"HF_": "huggingface_hub", "CUDA_": "torch", "VLLM_": "vllm"}


class SettingsWarning(UserWarning):
    """Something in `.env` has no effect; after the last colon stands what would."""


class SettingsError(ValueError):
    """A setting that can't be used; names the variable, its value, what is allowed."""


def _word(value: str) -> str:
    if any(character.isspace() for character in value):
        raise ValueError
    return value


def _model(value: str) -> str:
    # A name has no spaces; the path of a directory may.
    is_path = value.startswith((".", "/", "~")) or Path(value).is_dir()
    return value if is_path and value.isprintable() else _word(value)


def _choice(*allowed: str) -> Callable[[str], str]:
    return lambda value: allowed[allowed.index(value.lower())]


def _number(kind: type, above: float, most: float = math.inf) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        number = kind(value)
        if not above < number <= most:  # Also refuses NaN.
            raise ValueError
        return number

    return parse


def _setting(default: Any, allowed: str, parse: Callable, repr: bool = True) -> Any:
    """A field that knows how its variable is read, and what it may hold."""
    metadata = {"allowed": allowed, "parse": parse}
    return field(default=default, repr=repr, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The user's choices; `resolve_settings` replaces each "auto".

    Each has the variable of its name in capitals; None for `load_in_4bit` is "auto".
    """

    model_name: str = _setting(
        AUTO,
        "auto, a name in helpers.models.MODELS or a hub path, with no spaces, or a "
        "directory",
        _model,
    )
    load_in_4bit: bool | None = _setting(
        None, "auto, true or false", lambda value: _TRUTH_VALUES[value.lower()]
    )
    max_seq_length: int = _setting(4096, "a whole number from 64 up", _number(int, 63))
    gpu_memory_utilization: float = _setting(
        0.5, "a number above 0 and up to 1", _number(float, 0, 1)
    )
    log_level: str = _setting("error", ", ".join(LOG_LEVELS), _choice(*LOG_LEVELS))
    hf_token: str | None = _setting(
        None, "a token without spaces, or nothing", _word, repr=False
    )
    device: str = _setting(AUTO, ", ".join(DEVICES), _choice(*DEVICES))
    vllm_cpu_kvcache_space: int = _setting(
        1, "a whole number from 1 up", _number(int, 0)
    )

    def apply(self) -> None:
        """Set the process environment that the engines read.

        Call it before torch, unsloth and vllm are imported: all read their variables
        then.
        """
        if self.hf_token:
            os.environ["HF_TOKEN"] = self.hf_token  # vLLM reads it only there.
        elif os.environ.get("HF_TOKEN", "").lower() in _NO_TOKEN:
            del os.environ["HF_TOKEN"]  # The hub would refuse it.
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.vllm_cpu_kvcache_space)
        os.environ["VLLM_LOGGING_LEVEL"] = self.log_level.upper()
        os.environ["TRANSFORMERS_VERBOSITY"] = self.log_level
        of_torch = "info" if self.log_level == "debug" else self.log_level
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", of_torch.upper())
        # In-process, as Unsloth's engine on a GPU is, and six times faster to load.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if self.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def find_env_file() -> Path | None:
    """The nearest `.env`, from the working directory upwards; there may be none."""
    with contextlib.suppress(OSError):  # The working directory has been deleted.
        if found := find_dotenv(usecwd=True):
            return Path(found)
    return None


def load_settings(env_file: Path | None = None) -> Settings:
    """Read `.env`, then the environment, which wins; an empty value counts as not set.

    Without `env_file` it is that of `find_env_file`. What it holds for other libraries,
    such as HF_HOME or CUDA_VISIBLE_DEVICES, is put into the environment unless it is
    set there, as python-dotenv's `load_dotenv` does. Warns (`SettingsWarning`) of what
    has no effect. Raises `SettingsError` for a value that is not allowed, a line that
    can't be read, and an `env_file` that is not there.
    """
    env_file = env_file or find_env_file()
    from_file = {} if env_file is None else _read_env_file(env_file)
    _warn_of_no_effect(env_file, from_file)
    values = {}
    for row in fields(Settings):
        name = row.name.upper()
        for source, value in (
            ("the environment", os.environ.get(name, "").strip()),
            (env_file, from_file.pop(name, "").strip()),
        ):
            if value and (row.repr or value.lower() not in _NO_TOKEN):
                values[row.name] = _parse(row, value, source)
                break
    _export(from_file)
    return Settings(**values)


def _warn_of_no_effect(env_file: Path | None, names: Iterable[str]) -> None:
    """Of what looks like one of our variables: misspelt, or in lower case."""
    known = defaults()
    for name in names:
        near = difflib.get_close_matches(name.upper(), known, 1, 0.8)
        if near and name not in known:
            message = f"{name} in {env_file} has no effect: write {near[0]} instead."
            warnings.warn(message, SettingsWarning, stacklevel=3)


def _export(variables: dict[str, str]) -> None:
    """Set variables of other libraries where the environment does not."""
    for name, value in variables.items():
        if name in os.environ or not value:
            continue
        os.environ[name] = value
        for prefix, library in _READ_BY.items():
            if name.startswith(prefix) and library in sys.modules:
                warnings.warn(
                    f"{name} of .env was read after {library} had been imported, and "
                    "may have no effect: restart the kernel, load_settings() first.",
                    SettingsWarning,
                    stacklevel=3,
                )


def _parse(row: Field, value: str, source: object) -> Any:
    try:
        return row.metadata["parse"](value)
    except (ValueError, KeyError):
        shown = repr(value) if row.repr else "(not shown)"
        raise SettingsError(
            f"{row.name.upper()}={shown} in {source} can't be used. "
            f"Allowed: {row.metadata['allowed']}."
        ) from None


def _read_env_file(env_file: Path) -> dict[str, str]:
    """The assignments of a `.env`; of two for one variable the later one counts."""
    try:
        text = Path(env_file).read_text(encoding="utf-8-sig")
        bindings = list(parse_stream(io.StringIO(text)))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{env_file} can't be read as UTF-8 text ({type(error).__name__}). "
            "Copy .env.example to .env and start from that."
        ) from None
    for binding in bindings:
        # The line itself is not shown: it may hold a token.
        if binding.error or (binding.key and binding.value is None):
            raise SettingsError(
                f"{env_file}, line {binding.original.line} is not an assignment. "
                "Allowed: NAME=value, or a comment that begins with #."
            )
    # dotenv_values expands ${NAME}; the bindings are not expanded.
    return dotenv_values(stream=io.StringIO(text))


def defaults() -> dict[str, str]:
    """The default of each variable, as a `.env` would write it."""
    table = {row.name.upper(): str(row.default) for row in fields(Settings)}
    return table | {"LOAD_IN_4BIT": AUTO, "HF_TOKEN": ""}
