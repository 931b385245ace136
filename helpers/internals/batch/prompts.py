"""What a prompt is: from what a person writes to the tokens that an engine takes."""

import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine.sampling_params import Sampling
from ..thinking.families import unwrap_tokenizer
from .records import KEYS, Refused, id_of

if TYPE_CHECKING:
    from vllm import SamplingParams

_SHAPES = (
    "a prompt is a string, a list of chat messages, or a dict with messages or prompt "
    "and, if wanted, id, sampling_params and chat_template_kwargs"
)
# Roles that are accepted even if the template does not name them.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
# Which field of a content part has its text, by type: TEXT_PART_TYPES and MM_PARSER_MAP
# in vllm/renderers/chat_utils.py.
_TEXT_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **{"refusal": "refusal", "thinking": "thinking"},
}
# Arguments of apply_chat_template that users can't set.
_OURS = {"conversation", "messages", "tokenize", "return_dict", "return_tensors"}


class BadPrompt(ValueError):
    """Why a prompt can't be answered, and what to do about it."""


class Request(NamedTuple):
    """One prompt on its way to the engine, or with `error`, why it can't go there.

    `index` is the prompt's place among all, `prompt` what stood there, `id` its own.
    """

    index: int
    prompt: Any
    id: Any
    token_ids: list[int]
    params: "SamplingParams | None"
    error: str | None = None


class Preparer:
    """Turns prompts into requests; what is wrong with one of them ends only that one.

    `tokenizer` holds the chat template, `room` is the model's length in tokens, prompt
    and answer together. `chat_template_kwargs` go to the template of every prompt.

    Raises `ValueError` for a tokenizer without a chat template, and for a template that
    can't be compiled.
    """

    CHUNK = 256  # Prompts for one call of the tokenizer, which is faster with many.

    def __init__(
        self,
        tokenizer: Any,
        room: int,
        sampling: Sampling,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            self._kwargs = _template_kwargs(chat_template_kwargs)
        except BadPrompt as error:
            raise ValueError(str(error)) from None
        self._chat = ChatFormat(tokenizer)
        self._room = room
        self._sampling = sampling

    def prepare(self, prompts: Iterable[Any]) -> Iterator[Request]:
        """One request for each prompt, in order, reading some `CHUNK` of them ahead."""
        numbered = enumerate(prompts)
        while chunk := list(itertools.islice(numbered, self.CHUNK)):
            rendered = [self._render(prompt) for _, prompt in chunk]
            texts = [text for text in rendered if isinstance(text, str)]
            encoded = iter(self._chat.encode(texts))
            for (index, prompt), text in zip(chunk, rendered, strict=True):
                token_ids = next(encoded) if isinstance(text, str) else text
                yield self._request(index, prompt, token_ids)

    def _request(
        self, index: int, prompt: Any, token_ids: list[int] | BadPrompt
    ) -> Request:
        own = prompt if isinstance(prompt, Mapping) else {}
        try:
            if isinstance(token_ids, BadPrompt):
                raise token_ids
            if len(token_ids) >= self._room:
                raise BadPrompt(
                    f"the prompt has {len(token_ids):,} tokens, and the model was "
                    f"loaded for {self._room:,} with the answer: shorten or split "
                    "it, or raise MAX_SEQ_LENGTH."
                )
            params = self._sampling.params(own.get("sampling_params"), token_ids)
        except ValueError as error:
            return Request(index, prompt, id_of(prompt), [], None, str(error))
        return Request(index, prompt, id_of(prompt), token_ids, params)

    def _render(self, prompt: Any) -> str | list[int] | BadPrompt:
        if isinstance(prompt, Refused):
            return BadPrompt(prompt.reason)
        try:
            messages = self._chat.messages(prompt)
            kwargs = self._kwargs
            if isinstance(prompt, Mapping):
                kwargs = kwargs | _template_kwargs(prompt.get("chat_template_kwargs"))
            return self._chat.render(messages, kwargs)
        except BadPrompt as error:
            return error


def _template_kwargs(kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, Mapping | None):
        raise BadPrompt(
            "chat_template_kwargs are a dict, such as {'enable_thinking': False}, not "
            f"{type(kwargs).__name__}."
        )
    if wrong := _OURS & set(kwargs or ()):
        raise BadPrompt(f"chat_template_kwargs can't have {', '.join(sorted(wrong))}.")
    return dict(kwargs or {})


# --- messages -------------------------------------------------------------------------


class ChatFormat:
    """A tokenizer's way to write a chat: flattens messages, renders and encodes them.

    Raises `ValueError` for a tokenizer without a chat template, and for a template that
    can't be compiled.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = unwrap_tokenizer(tokenizer)
        self._template = _template(self._tokenizer)
        self._turns: list[str] = []  # tokens that the template writes
        self._warned = self._in_parts = False
        if self._template is not None:
            self._probe()

    def _probe(self) -> None:
        """See how the template writes a message: with which tokens, and from what."""
        from jinja2 import TemplateSyntaxError

        hello = [{"role": "user", "content": "Hello"}]
        parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        try:
            text = self._tokenizer.apply_chat_template(hello, tokenize=False)
            if "Hello" not in text:  # The template only takes lists of parts.
                text = self._tokenizer.apply_chat_template(parts, tokenize=False)
                self._in_parts = "Hello" in text
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the tokenizer's chat template can't be compiled: {error} (line "
                f"{error.lineno}). Mend tokenizer.chat_template, or load the "
                "tokenizer anew."
            ) from error
        except Exception:  # It needs more than a message: tools, say.
            return
        self._turns = [t for t in self._tokenizer.get_added_vocab() if t in text]

    def messages(self, prompt: Any) -> list[dict[str, Any]]:
        """The chat that a prompt is, each content a text. Raises `BadPrompt`."""
        if isinstance(prompt, Mapping):
            if unknown := [str(key) for key in prompt if key not in KEYS]:
                raise BadPrompt(f"unknown key {', '.join(unknown)}: {_SHAPES}.")
            if ("messages" in prompt) == ("prompt" in prompt):
                raise BadPrompt("give the dict either messages or prompt.")
            prompt = prompt["messages"] if "messages" in prompt else prompt["prompt"]
        if isinstance(prompt, bytes | bytearray):
            raise BadPrompt("the prompt is bytes: pass text, prompt.decode().")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if hasattr(prompt, "tolist"):  # pandas turns a column of lists into arrays.
            prompt = prompt.tolist()
        if not isinstance(prompt, list | tuple):
            raise BadPrompt(f"{_SHAPES}; this is of type {type(prompt).__name__}.")
        messages = [self._message(message) for message in prompt]
        if not any(m["content"].strip() or m.get("tool_calls") for m in messages):
            raise BadPrompt("the prompt is empty: write a question, or leave it out.")
        return messages

    def _message(self, message: Any) -> dict[str, Any]:
        known = message if isinstance(message, Mapping) else {}
        role, content, calls = map(known.get, ("role", "content", "tool_calls"))
        if not isinstance(role, str) or (content is None and not calls):
            raise BadPrompt(
                'each chat message is a dict with "role" and "content"; one is '
                f"{str(message)[:60]!r}."
            )
        if role not in _ROLES and role not in (self._template or ""):
            raise BadPrompt(
                f"unknown role {role!r}: the model's chat template has none but "
                f"{', '.join(sorted(_ROLES))}."
            )
        flat = {**message, "content": _text("" if content is None else content)}
        turns = [turn for turn in self._turns if turn in flat["content"]]
        if role == "user" and turns and not self._warned:
            self._warned = True
            warnings.warn(
                f"a prompt contains {turns[0]}, which the chat template writes itself: "
                "a text that is formatted already gets formatted twice. Pass the "
                "question alone or the list of messages; a formatted text goes to "
                "model.fast_generate.",
                stacklevel=2,
            )
        if calls:
            if not isinstance(calls, list | tuple):
                raise BadPrompt('tool_calls is a list of dicts with "function".')
            flat["tool_calls"] = [_tool_call(call) for call in calls]
        return flat

    def render(
        self, messages: list[dict[str, Any]], kwargs: Mapping[str, Any]
    ) -> str | list[int]:
        """A chat as the template's text, or its tokens where there is no template.

        A chat that ends in an assistant's words is one to be continued. Raises
        `BadPrompt`.
        """
        last = messages[-1]
        begun = last["role"] == "assistant" and not last.get("tool_calls")
        options = {"add_generation_prompt": not begun, "continue_final_message": begun}
        for message in messages:  # mistral-common would encode half a character.
            _check_letters(message["content"])
        if self._in_parts:
            messages = [
                {**m, "content": [{"type": "text", "text": m["content"]}]}
                for m in messages
            ]
        by_code = self._template is None
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=by_code, return_dict=False, **{**options, **kwargs}
            )
        except Exception as error:  # Whatever the template's own code raises.
            raise BadPrompt(
                f"the model's chat template refuses these messages: {error}. Check "
                "their roles and their order, and chat_template_kwargs."
            ) from error
        if not by_code:  # The template may add other fields' text.
            _check_letters(rendered)
        return rendered

    def encode(self, texts: list[str]) -> Sequence[list[int]]:
        """The tokens of what `render` gave, without a second start token."""
        if not texts:
            return []
        encoded = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False
        )
        return encoded["input_ids"]


def _template(tokenizer: Any) -> str | None:
    """The chat template's text; None for tokenizers that write chats by code."""
    try:
        return tokenizer.get_chat_template()
    except (AttributeError, NotImplementedError):  # mistral-common's
        if hasattr(tokenizer, "apply_chat_template"):
            return None
    except ValueError:
        pass
    raise ValueError(
        "the tokenizer has no chat template: use a model trained for chats, or set "
        "tokenizer.chat_template"
    )


def _check_letters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(
            f"the text has half of a character ({text[error.start]!r}, a lone "
            "surrogate), as text that was cut or decoded wrongly has: take it out, "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from None


def _text(content: Any) -> str:
    """Content as one text; parts are joined by line breaks, as `LLM.chat` does."""
    if isinstance(content, str):
        return content
    if hasattr(content, "tolist"):
        content = content.tolist()
    if not isinstance(content, list | tuple):
        raise BadPrompt(
            f"a message's content is of type {type(content).__name__}: pass a text, or "
            'parts such as {"type": "text", "text": "..."}.'
        )
    texts = []
    for part in content:
        if isinstance(part, Mapping):
            kind = str(part.get("type", "text"))
            part = part.get(_TEXT_PARTS.get(kind, ""))
            if kind not in _TEXT_PARTS:
                raise BadPrompt(
                    f"content of type {kind!r}: run_batch passes text only. A model "
                    "that sees pictures takes them by model.vllm_engine.chat."
                )
        if not isinstance(part, str):
            raise BadPrompt('a text part has no text: {"type": "text", "text": "..."}.')
        texts.append(part)
    return "\n".join(texts)


def _tool_call(call: Any) -> Any:
    """A call of a tool, its arguments as the dict that templates want, not as JSON."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise BadPrompt('each of tool_calls is a dict with "function".')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise BadPrompt(f"a tool's arguments are no JSON: {error}.") from None
    return {**call, "function": {**function, "arguments": arguments}}
