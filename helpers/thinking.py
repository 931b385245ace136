"""Tell a thinking model's thinking from its answer, by token and not by text.

The first end marker among the generated tokens is the cut. What the model writes after
it is the answer, as it is: a marker that appears there again stays in the text. Only
where a tokenizer has no tokens for markers are they looked for in the text.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from operator import index
from typing import Any, NamedTuple

from .internals.thinking.families import (
    ChannelTokens,
    PairTokens,
    SpelledPairs,
    added_tokens,
    find_markers,
    unwrap_tokenizer,
)
from .internals.thinking.splitting import (
    ChannelSplitter,
    PairSplitter,
    Piece,
    SpelledSplitter,
    Splitter,
    ThinkingDelta,
)
from .internals.thinking.streaming import Detokenizer

# `</think>` in Qwen3's vocabulary, from Qwen/Qwen3-4B-Thinking-2507's tokenizer_config.
# Parsing never uses it: other tokenizers have other ids.
THINK_END_TOKEN_ID = 151668

INCOMPLETE_HINT = "The thinking is not finished: raise max_tokens and generate again."


def unfinished_hint(finish_reason: str | None) -> str:
    """What to say where the thinking was not closed; the same words in every view.

    `finish_reason` is vLLM's, None if it is not known.
    """
    if finish_reason in (None, "length"):
        return INCOMPLETE_HINT
    if finish_reason == "abort":  # vLLM's word for a request that was stopped
        return "It was stopped while it was thinking."
    return "The model ended before it had closed its thinking."


class _Texts(NamedTuple):
    thinking: str
    response: str | None


class ThinkingResult(_Texts):
    """One parsed completion; unpacks as `thinking, response`, both stripped.

    `response` is None while the thinking is unfinished, and `hint` says why it is.
    `thinking_tokens` and `response_tokens` count generated tokens, an end-of-turn token
    included; the markers that cut are in neither. `finish_reason` is vLLM's, None if it
    was not given. `markers_in_text` is True where the cut was found in the text, since
    the model spelled the markers in letters; those count as thinking.
    """

    thinking_tokens: int = 0
    response_tokens: int = 0
    finish_reason: str | None = None
    markers_in_text: bool = False

    def __new__(
        cls,
        thinking: str,
        response: str | None,
        thinking_tokens: int = 0,
        response_tokens: int = 0,
        finish_reason: str | None = None,
        markers_in_text: bool = False,
    ) -> "ThinkingResult":
        self = super().__new__(cls, thinking, response)
        self.thinking_tokens = thinking_tokens
        self.response_tokens = response_tokens
        self.finish_reason = finish_reason
        self.markers_in_text = markers_in_text
        return self

    @property
    def complete(self) -> bool:
        """True where the thinking was finished, or there was none."""
        return self.response is not None

    @property
    def truncated(self) -> bool:
        """True where tokens ran out, in the thinking or in the answer.

        Without a `finish_reason` only unfinished thinking can be told.
        """
        if self.finish_reason is None:
            return not self.complete
        return self.finish_reason == "length"

    @property
    def hint(self) -> str:
        """Why there is no response, and what to do; "" where there is one."""
        return "" if self.complete else unfinished_hint(self.finish_reason)

    def __repr__(self) -> str:
        facts = {"thinking": self.thinking, "response": self.response, **vars(self)}
        if not self.markers_in_text:
            del facts["markers_in_text"]
        text = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        return f"ThinkingResult({text})" + ("" if self.complete else f"  # {self.hint}")


_SPLITTERS = {
    PairTokens: PairSplitter,
    ChannelTokens: ChannelSplitter,
    SpelledPairs: SpelledSplitter,
}


class ThinkingParser:
    """Parses the completions of one tokenizer, whose markers it looks up only once.

    `markers` is a model's own pair of start and end marker, tokens or not; without it
    its vocabulary tells (`internals/thinking/families` has the known ones).
    """

    def __init__(
        self, tokenizer: Any, *, markers: tuple[str, str] | None = None
    ) -> None:
        self._tokenizer = unwrap_tokenizer(tokenizer)
        self._markers = find_markers(self._tokenizer, markers)

    def parse(
        self,
        token_ids: Iterable[int],
        *,
        prompt_token_ids: Iterable[int] | None = None,
        finish_reason: str | None = None,
    ) -> ThinkingResult:
        """Split one completion, as `parse_thinking_response` does."""
        return self.parse_all([token_ids], [prompt_token_ids], [finish_reason])[0]

    def parse_all(
        self,
        completions: Iterable[Iterable[int]],
        prompts: Iterable[Iterable[int] | None],
        finish_reasons: Iterable[str | None],
    ) -> list[ThinkingResult]:
        """Split completions that have one prompt and one reason each, or None."""
        parsed = []
        for completion, prompt in zip(completions, prompts, strict=True):
            splitter = self.splitter(prompt)
            parsed.append((splitter, list(splitter.cut(as_token_ids(completion)))))
        runs = [p.token_ids for _, pieces in parsed for p in pieces if p.token_ids]
        texts = iter(self.decode(runs))
        results = []
        for (splitter, pieces), reason in zip(parsed, finish_reasons, strict=True):
            for piece in pieces:
                splitter.add(piece, next(texts) if piece.token_ids else piece.text)
            splitter.finish()
            results.append(_result(splitter, reason))
        return results

    def splitter(self, prompt: Iterable[int] | None) -> Splitter:
        """The rules for a completion of this prompt, or of one that nobody shows us."""
        splitter = _SPLITTERS[type(self._markers)](self._markers, self._decode_one)
        known = prompt is not None
        prompt = as_token_ids(prompt) if known else self._usual_prompt
        splitter.begin(prompt, self._turn_ids, known)
        return splitter

    def decode(self, sequences: list[list[int]]) -> list[str]:
        """The texts, without special tokens. ValueError for another model's tokens."""
        try:
            # Some tokenizers' clean-up would change the text.
            return self._tokenizer.batch_decode(
                sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        except (KeyError, IndexError, OverflowError) as error:
            raise ValueError(
                f"this tokenizer can't decode these token ids ({error}): pass the "
                "tokenizer of the model that generated them"
            ) from error

    def _decode_one(self, token_ids: list[int]) -> str:
        return self.decode([token_ids])[0] if token_ids else ""

    @cached_property
    def _usual_prompt(self) -> list[int]:
        """What the chat template makes of a question; empty where it makes nothing."""
        question = [{"role": "user", "content": "Hello"}]
        try:
            return self._tokenizer.apply_chat_template(
                question, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception:  # No template, or one that wants tools or a system prompt.
            return []

    @cached_property
    def _turn_ids(self) -> frozenset[int]:
        """The tokens that begin or end turns.

        Special ones, and such as the chat template writes: in DeepSeek-R1's distilled
        models `<｜User｜>` is not special. White space marks no turns (Gemma has it as
        tokens of that kind).
        """
        template = str(getattr(self._tokenizer, "chat_template", None) or "")
        found = set(self._tokenizer.all_special_ids)
        for token_id, (text, special) in added_tokens(self._tokenizer).items():
            written = text in template or token_id in self._usual_prompt
            if special or (text.strip() and (written or not template)):
                found.add(token_id)
        return frozenset(found)


def _result(splitter: Splitter, finish_reason: str | None) -> ThinkingResult:
    return ThinkingResult(
        str(splitter.thinking),
        None if splitter.is_thinking else str(splitter.response),
        splitter.thinking_tokens,
        splitter.response_tokens,
        finish_reason,
        splitter.markers_in_text,
    )


def as_token_ids(token_ids: Any) -> list[int]:
    """A list of token ids, from a generator, array, tensor or a tokenizer's result.

    Raises TypeError for anything else and ValueError for negative numbers.
    """
    is_encoding = isinstance(token_ids, Mapping)
    if is_encoding:
        token_ids = token_ids.get("input_ids")
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    match token_ids:
        case [list(row)] if is_encoding:  # A tokenizer's batch of one text.
            token_ids = row
    try:
        ids = list(map(index, token_ids))
    except TypeError:
        raise TypeError(
            "expected the token ids of one completion or prompt, got text or a nested "
            "sequence; for several completions use parse_thinking_responses"
        ) from None
    if ids and min(ids) < 0:
        raise ValueError(
            f"{min(ids)} is no token id: leave out padding and masked labels"
        )
    return ids


def parse_thinking_response(
    token_ids: Iterable[int],
    tokenizer: Any,
    *,
    prompt_token_ids: Iterable[int] | None = None,
    finish_reason: str | None = None,
    markers: tuple[str, str] | None = None,
) -> ThinkingResult:
    """Split one completion into thinking and answer.

    `token_ids` are the generated tokens only, without the prompt. Whether the thinking
    was opened is known from the completion's own start marker, else from
    `prompt_token_ids` (`RequestOutput.prompt_token_ids` of vLLM), else from the end of
    the tokenizer's generation prompt. With neither of the two a lone end marker still
    cuts; after a prompt that is known not to have opened the thinking, it is text.
    `finish_reason` is that of vLLM's `CompletionOutput`, `markers` the model's own
    start and end marker where it is of no known family. `ThinkingParser` does the same
    for one completion after the other. Raises TypeError for a nested sequence and
    ValueError for tokens that the tokenizer can't have made.
    """
    parser = ThinkingParser(tokenizer, markers=markers)
    return parser.parse(
        token_ids, prompt_token_ids=prompt_token_ids, finish_reason=finish_reason
    )


def parse_thinking_responses(
    completions: Iterable[Iterable[int]],
    tokenizer: Any,
    *,
    prompt_token_ids: Iterable[Iterable[int] | None] | None = None,
    finish_reasons: Iterable[str | None] | None = None,
    markers: tuple[str, str] | None = None,
) -> list[ThinkingResult]:
    """Parse many completions as `parse_thinking_response` does, decoding all at once.

    `prompt_token_ids` and `finish_reasons`, where given, have one entry for each
    completion; ValueError if they have not.
    """
    completions = list(completions)
    none = [None] * len(completions)
    prompts = none if prompt_token_ids is None else prompt_token_ids
    reasons = none if finish_reasons is None else finish_reasons
    parser = ThinkingParser(tokenizer, markers=markers)
    return parser.parse_all(completions, prompts, reasons)


class ThinkingStream:
    """The same rules for tokens that arrive bit by bit.

    Feed each token once, in any portions; `finish` gives the result that parsing all of
    them at once would give. The deltas and what `finish` still found add up to it, but
    for one case: text before a start marker that is never closed was given as response,
    and the result has None. `tokenizer` may be a `ThinkingParser`, which saves looking
    up the markers for each stream.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_token_ids: Iterable[int] | None = None,
        markers: tuple[str, str] | None = None,
    ) -> None:
        if not isinstance(tokenizer, ThinkingParser):
            tokenizer = ThinkingParser(tokenizer, markers=markers)
        self._splitter = tokenizer.splitter(prompt_token_ids)
        self._detokenizer = Detokenizer(tokenizer.decode)
        self._run = Piece(self.is_thinking)  # The run that is being written.
        self._finished = False

    @property
    def is_thinking(self) -> bool:
        """True while the next token belongs to the thinking."""
        return self._splitter.is_thinking

    def feed(self, token_ids: Iterable[int]) -> ThinkingDelta:
        """Take the next tokens and give the text that is sure by now.

        Raises RuntimeError after `finish`.
        """
        if self._finished:
            raise RuntimeError("this stream is finished: make a new ThinkingStream")
        delta = ThinkingDelta("", "")
        for piece in self._splitter.cut(as_token_ids(token_ids)):
            if piece.token_ids:
                self._run = piece
                text = self._detokenizer.push(piece.token_ids)
            else:
                ended = self._splitter.add(self._run, self._detokenizer.flush())
                delta, text = delta.then(ended), piece.text
            delta = delta.then(self._splitter.add(piece, text))
        return delta

    def finish(self, finish_reason: str | None = None) -> ThinkingResult:
        """End the stream and give the whole result."""
        if not self._finished:
            self._finished = True
            self._splitter.add(self._run, self._detokenizer.flush())
            self._splitter.finish()
        return _result(self._splitter, finish_reason)
