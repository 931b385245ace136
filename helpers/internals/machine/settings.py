"""The user's choices, read from `.env` and the environment, and checked.

In go the nearest `.env` and the environment, which wins; out comes one `Settings`.
`.env.example` says what each field means. Variables of other libraries are passed on.
It knows nothing of models: `internals.engine.plan` replaces each "auto".
"""

import contextlib
import difflib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

AUTO = "auto"
_ANY_CASE = BeforeValidator(str.lower)
# Libraries that read variables with these prefixes as they are imported.
_READ_BY = {"HF_": "huggingface_hub", "CUDA_": "torch", "VLLM_": "vllm"}


class SettingsWarning(UserWarning):
    """A line of `.env` has no effect; the text after the last colon would have."""


class SettingsError(ValueError):
    """A setting that can't be used; names the variable, its value, what is allowed."""


def _none_for(*words: str) -> BeforeValidator:
    return BeforeValidator(lambda value: None if str(value).lower() in words else value)


def _check_token(token: SecretStr | None) -> SecretStr | None:
    if token and any(map(str.isspace, token.get_secret_value())):
        raise ValueError("a token has no spaces")
    return token


class Settings(BaseSettings):
    """The user's choices, each in the variable of its name in capitals.

    `load_in_4bit` and `gpu_memory_utilization` are None for "auto". A token may be
    written as "none" or "null".
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        env_file_encoding="utf-8-sig",
        extra="ignore",
        frozen=True,
    )

    model_name: str = AUTO
    load_in_4bit: Annotated[bool | None, _none_for(AUTO)] = None
    max_seq_length: int = Field(4096, ge=64)
    gpu_memory_utilization: Annotated[
        float | None, Field(gt=0, le=1), _none_for(AUTO)
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _ANY_CASE] = (
        "error"
    )
    hf_token: Annotated[
        SecretStr | None, _none_for("none", "null"), AfterValidator(_check_token)
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], _ANY_CASE] = AUTO
    vllm_cpu_kvcache_space: int = Field(1, ge=1)

    def apply(self) -> None:
        """Set the variables that torch, unsloth and vllm read as they are imported."""
        os.environ.pop("HF_TOKEN", None)  # The Hub would refuse "none".
        if self.hf_token:  # vLLM reads it only there.
            os.environ["HF_TOKEN"] = self.hf_token.get_secret_value()
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.vllm_cpu_kvcache_space)
        os.environ["VLLM_LOGGING_LEVEL"] = self.log_level.upper()
        os.environ["TRANSFORMERS_VERBOSITY"] = self.log_level
        of_torch = "info" if self.log_level == "debug" else self.log_level
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", of_torch.upper())
        # In-process, as Unsloth's engine on a GPU is, and six times faster to load.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if self.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def defaults() -> dict[str, str]:
    """Return the default of each variable, as a `.env` would write it."""
    table = {name: row.default for name, row in Settings.model_fields.items()}
    table |= {"load_in_4bit": AUTO, "gpu_memory_utilization": AUTO, "hf_token": ""}
    return {name.upper(): str(value) for name, value in table.items()}


def find_env_file() -> Path | None:
    """Return the nearest `.env`, from the working directory upwards, or None."""
    with contextlib.suppress(OSError):  # The working directory has been deleted.
        if found := find_dotenv(usecwd=True):
            return Path(found)
    return None


def load_settings(env_file: Path | None = None) -> Settings:
    """Read `.env`, then the environment, which wins; an empty value counts as not set.

    Without `env_file` it is the nearest one. A folder that it names in MODEL_NAME
    counts from its own. Its variables for other libraries, such as HF_HOME, go into the
    environment where they are not set. Warns (`SettingsWarning`) of lines without
    effect. Raises `SettingsError` for a value that is not allowed, and for a file or a
    line that can't be read.
    """
    env_file = env_file or find_env_file()
    if env_file:
        _pass_on(_read_env_file(env_file), env_file)
    try:
        settings = Settings(_env_file=env_file)
    except ValidationError as error:
        problems = [_explain(problem, env_file) for problem in error.errors()]
        raise SettingsError("; ".join(problems)) from None
    if env_file and not os.environ.get("MODEL_NAME"):
        beside = env_file.absolute().parent / settings.model_name
        if beside.is_dir():
            return settings.model_copy(update={"model_name": str(beside)})
    return settings


def _explain(problem: dict, env_file: Path | None) -> str:
    name = str(problem["loc"][0]).upper()
    value = "(not shown)" if name == "HF_TOKEN" else repr(problem["input"])
    source = "the environment" if os.environ.get(name) else env_file
    return f"{name}={value} in {source} can't be used: {problem['msg']}"


def _read_env_file(env_file: Path) -> dict[str, str | None]:
    try:
        text = env_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{env_file} can't be read as UTF-8 text ({type(error).__name__}). Mend "
            "it, or start from a copy of .env.example."
        ) from None
    for line in parse_stream(io.StringIO(text)):
        if line.error or (line.key and line.value is None):
            raise SettingsError(  # The line is not shown: it may hold a token.
                f"{env_file}, line {line.original.line} is not an assignment. "
                "Allowed: NAME=value, or a comment that begins with #."
            )
    return dotenv_values(stream=io.StringIO(text))


def _pass_on(variables: dict[str, str | None], env_file: Path) -> None:
    """Set the variables of other libraries; warn of those that come to nothing."""
    known = defaults()
    for name, value in variables.items():
        if name.upper() in known or not value:
            continue
        if near := difflib.get_close_matches(name.upper(), known, 1, 0.8):
            message = f"{name} in {env_file} has no effect: write {near[0]} instead."
            warnings.warn(message, SettingsWarning, stacklevel=3)
        readers = [late for start, late in _READ_BY.items() if name.startswith(start)]
        if name not in os.environ and any(late in sys.modules for late in readers):
            message = (
                f"{name} in {env_file} was read after {readers[0]} had been imported, "
                "and may have no effect: restart the kernel, load_settings() first."
            )
            warnings.warn(message, SettingsWarning, stacklevel=3)
        os.environ.setdefault(name, value)
