"""The user's choices, read from `.env` and the environment, and checked.

In go the nearest `.env` and the environment, which wins; out comes one `Settings`.
`.env.example` explains its fields; `internals.engine.plan` replaces each "auto".
"""

import difflib
import functools
import io
import os
import warnings
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

AUTO = "auto"
_LEVELS = Literal["debug", "info", "warning", "error"]
_ANY_CASE = BeforeValidator(str.lower)
_NONE = (AUTO, "none", "null")
_OR_NONE = BeforeValidator(lambda v: None if str(v).lower() in _NONE else v)


class SettingsError(ValueError):
    """A setting that can't be used; names the variable, its value, what is allowed."""


class Settings(BaseSettings):
    """The user's choices, by the variable in capitals; None is "auto", or no token."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    model_name: str = AUTO
    load_in_4bit: Annotated[bool | None, _OR_NONE] = None
    max_seq_length: int = Field(4096, ge=64)
    gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1), _OR_NONE] = None
    log_level: Annotated[_LEVELS, _ANY_CASE] = "error"
    hf_token: Annotated[SecretStr | None, _OR_NONE] = None
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


VARIABLES = tuple(name.upper() for name in Settings.model_fields)


def load_settings() -> Settings:
    """Take the nearest `.env` and the environment, which wins; empty is not set.

    A folder in the file's MODEL_NAME counts from the file. Its variables for other
    libraries, as HF_HOME, go into the environment if not set. Warns of misspelt names.
    Raises `SettingsError` for a value that is not allowed or a file that can't be read.
    """
    file, ours = Path(find_dotenv(usecwd=True)), {}  # "." if there is none.
    for name, value in (read_env_file(file) if file.name else {}).items():
        if name in VARIABLES:
            if not os.environ.get(name):
                ours[name.lower()] = value
        elif near := difflib.get_close_matches(name.upper(), VARIABLES, 1, 0.8):
            problem = f"{name} in {file} has no effect: write {near[0]} instead."
            warnings.warn(problem, stacklevel=2)
        else:
            os.environ.setdefault(name, value)
    if "model_name" in ours and (file.parent / ours["model_name"]).is_dir():
        ours["model_name"] = str(file.parent / ours["model_name"])
    try:
        return Settings(**ours)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name, value = str(problem["loc"][0]), problem["input"]
            source = file if name in ours else "the environment"
            problems.append(f"{name.upper()}={value!r} in {source}: {problem['msg']}")
        raise SettingsError("; ".join(problems)) from None


@functools.cache
def read_env_file(file: Path) -> dict[str, str]:
    """Read a `.env`; once, so that a change needs a new kernel, or `cache_clear()`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        for line in parse_stream(io.StringIO(text)):
            if line.error or (line.key and line.value is None):
                # The line is not shown: it may hold a token.
                raise ValueError(f"line {line.original.line} is not NAME=value")
    except (OSError, ValueError) as error:
        problem = f"{file} can't be read: {error}; see .env.example"
        raise SettingsError(problem) from None
    return {k: v for k, v in dotenv_values(stream=io.StringIO(text)).items() if v}
