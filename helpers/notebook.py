"""What every notebook begins with: `setup = set_up()`, `setup.load()`, `to_token_ids`.

In go the settings of `.env` and this machine; out come one line that says what will
run, the model with its tokenizer, and the token ids of a chat.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import loading
from .internals.engine.exceptions import ModelLoadError
from .internals.engine.plan import resolve_model_path, resolve_settings
from .internals.machine.devices import current_gpu
from .internals.machine.settings import load_settings
from .internals.machine.versions import ENGINES, find_version
from .internals.thinking.families import unwrap_tokenizer
from .models import QWEN3_THINKING_SAMPLING, SMOLLM2, TINY_THINKER, find_model

ANSWER_TOKENS = 2048  # Thinking and answer; half of the context if that is less.
NOISE_TOKENS = 128  # Noise seldom ends by itself, and a short text measures as well.
NOISE_TAG = "random-weights"  # In the card of a model that tools.random_model made.


@dataclass(frozen=True)
class Setup:
    """The settings of a notebook with every "auto" resolved, its model, its machine.

    `max_seq_length` is prompt and completion together, in tokens, and `max_tokens` the
    most of an answer, thinking included. `sampling` is what the model's authors
    recommend, or else Qwen for its thinking models. If the weights are random,
    `is_noise`, the text can't be checked; `text_model` is one whose text is real.
    """

    model_name: str
    load_in_4bit: bool
    max_seq_length: int
    gpu_memory_utilization: float
    device: Literal["cuda", "cpu"]
    device_name: str
    sampling: Mapping[str, float]
    is_noise: bool
    text_model: str
    max_tokens: int

    @property
    def on_gpu(self) -> bool:
        """True if the engines run on a GPU."""
        return self.device == "cuda"

    @property
    def model_path(self) -> str:
        """The chosen model's hub path or folder, which Unsloth and vLLM load alone."""
        return resolve_model_path(self.model_name)

    def load(self, model_name: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
        """Load a model by `FastLanguageModel`; return (model, tokenizer).

        Without `model_name` it is the chosen model. Precision, context and share of the
        GPU are those of the settings, and `fast_inference` is True, unless `kwargs`,
        those of `from_pretrained`, say otherwise. Raises what it raises.
        """
        name, in_4bit = model_name or self.model_name, self.load_in_4bit
        if name != self.model_name:
            settings = load_settings().model_copy(update={"model_name": name})
            in_4bit = resolve_settings(settings).load_in_4bit
        options = {"load_in_4bit": in_4bit, "fast_inference": True}
        for setting in ("max_seq_length", "gpu_memory_utilization"):
            options[setting] = getattr(self, setting)
        return loading.FastLanguageModel.from_pretrained(name, **options | kwargs)

    def __repr__(self) -> str:
        bits = "4-bit" if self.load_in_4bit else "16-bit" if self.on_gpu else "32-bit"
        noise = ", random weights: its text is noise" if self.is_noise else ""
        kind = f"{bits}, context {self.max_seq_length:,} tokens{noise}"
        found = {name: find_version(name) for name in ("unsloth", "vllm", "torch")}
        versions = ", ".join(f"{ENGINES[name]} {v}" for name, v in found.items() if v)
        return f"{self.model_name} ({kind}) on {self.device_name}; {versions}"

    def check(self, condition: object, claim: str) -> None:
        """Raise `AssertionError(claim)` if `condition`, on an answer's text, is false.

        If the text is noise, nothing is checked, and a line in the output says so.
        """
        _check(condition, claim, self.is_noise and "the text is noise")

    def check_exactly(self, condition: object, claim: str) -> None:
        """Check equal tokens alike, except on a GPU, which rounds by the batch."""
        _check(condition, claim, self.on_gpu and "a GPU rounds differently each time")


def _check(condition: object, claim: str, reason_not_to: object) -> None:
    if reason_not_to:
        print(f"Not checked, since {reason_not_to}: {claim}.")
    elif not condition:
        raise AssertionError(claim)


def set_up() -> Setup:
    """Read `.env`, resolve what is "auto", import unsloth first and quiet the engines.

    Raises `SettingsError`, and what the import of `FastLanguageModel` raises.
    """
    loading.FastLanguageModel  # noqa: B018  This imports unsloth and quiets it.
    settings, gpu, spec = resolve_settings(load_settings()), current_gpu(), None
    name, noise = settings.model_name, is_noise(settings.model_name)
    with suppress(ValueError, ModelLoadError):  # load() says what is wrong with it.
        spec = find_model(resolve_model_path(name, make=False))
    room = NOISE_TOKENS if noise else ANSWER_TOKENS
    cores = f"a CPU with {os.cpu_count()} cores"
    device = cores if settings.device == "cpu" else gpu.name if gpu else "CUDA"
    return Setup(
        **settings.model_dump(include=set(Setup.__annotations__)),
        device_name=device,
        sampling=spec.sampling if spec else QWEN3_THINKING_SAMPLING,
        is_noise=noise,
        text_model=SMOLLM2 if noise or (spec and spec.name == TINY_THINKER) else name,
        max_tokens=min(room, settings.max_seq_length // 2),
    )


def to_token_ids(
    messages: str | Sequence[Mapping[str, Any]], tokenizer: Any, **template_kwargs: Any
) -> list[int]:
    """Write a chat as the model's template does, and return its token ids.

    `messages` is a list of {"role": ..., "content": ...}, or a user's text. The ids end
    where the model's turn begins, or with the content of an assistant's last message,
    for the model to continue. `template_kwargs` go to `apply_chat_template` (`tools=`).
    Raises `ValueError` for a tokenizer without a chat template.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    *before, last = messages
    begun = last["role"] == "assistant" and not last.get("tool_calls")
    if begun and not last.get("content"):  # There is nothing to continue.
        messages, begun = before, False
    options = {"add_generation_prompt": not begun, "continue_final_message": begun}
    return unwrap_tokenizer(tokenizer).apply_chat_template(
        list(messages), tokenize=True, return_dict=False, **options | template_kwargs
    )


def is_noise(model_name: str | Path) -> bool:
    """Tell whether the card in a model's folder says that its text is noise."""
    try:
        card = (Path(model_name).expanduser() / "README.md").read_text("utf-8")
    except OSError:
        return False
    return card.startswith("---") and NOISE_TAG in card.partition("\n---")[0]
