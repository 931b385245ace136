"""Tell a thinking model's thinking from its answer, by token and not by text.

In go the generated token ids and their tokenizer. Out comes a `ThinkingResult`. The
first end marker among the tokens is the cut. All text after it is the answer, as the
model wrote it: a marker that appears there again stays. Only where a tokenizer has no
tokens for markers are they looked for in the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .internals.thinking import families
from .internals.thinking.splitting import SPLITS, Split, last_turn
from .internals.thinking.token_ids import as_token_ids

# `</think>` in Qwen3's vocabulary, from Qwen/Qwen3-4B-Thinking-2507's tokenizer_config.
# Parsing never uses it: other tokenizers have other ids.
THINK_END_TOKEN_ID = 151668

INCOMPLETE_HINT = "The thinking is not finished: raise max_tokens and generate again."


def unfinished_hint(finish_reason: str | None) -> str:
    """Say why thinking was not closed, in the same words in every view.

    `finish_reason` is vLLM's, None if it is not known.
    """
    if finish_reason in (None, "length"):
        return INCOMPLETE_HINT
    if finish_reason == "abort":  # vLLM's word for a request that was stopped
        return "It was stopped while it was thinking."
    return "The model ended before it had closed its thinking."


@dataclass(frozen=True, repr=False)
class ThinkingResult:
    """One parsed completion; unpacks as `thinking, response`, both stripped.

    `response` is None while the thinking is unfinished, and `hint` gives the reason.
    `thinking_tokens` and `response_tokens` count generated tokens, an end-of-turn token
    included, the markers that cut left out. `finish_reason` is vLLM's, None if it was
    not given. `markers_in_text` is True where the model spelled its markers in letters;
    these count as thinking.
    """

    thinking: str
    response: str | None
    thinking_tokens: int = 0
    response_tokens: int = 0
    finish_reason: str | None = None
    markers_in_text: bool = False

    def __getitem__(self, place: int) -> str | None:
        """Give a pair's items, which unpacking asks for as well."""
        return (self.thinking, self.response)[place]

    @property
    def complete(self) -> bool:
        """True where the thinking was finished, or there was none."""
        return self.response is not None

    @property
    def truncated(self) -> bool:
        """True where tokens ran out; only in the thinking without `finish_reason`."""
        if self.finish_reason is None:
            return not self.complete
        return self.finish_reason == "length"

    @property
    def hint(self) -> str:
        """The reason for a missing response, and the remedy; "" for a complete one."""
        return "" if self.complete else unfinished_hint(self.finish_reason)

    def __repr__(self) -> str:
        facts = [f"{k}={v!r}" for k, v in vars(self).items() if v is not False]
        hint = f"  # {self.hint}" if self.hint else ""
        return f"ThinkingResult({', '.join(facts)}){hint}"


class ThinkingParser:
    """Parses the completions of one tokenizer, whose markers it looks up only once.

    `markers` is a model's own pair of start and end marker, tokens or not. Without it
    the vocabulary tells (`internals/thinking/families` has the known families).
    """

    def __init__(self, tokenizer: Any, markers: tuple[str, str] | None = None) -> None:
        self._tokenizer = families.unwrap_tokenizer(tokenizer)
        self._markers = families.find_markers(self._tokenizer, markers)

    def parse(
        self,
        token_ids: Iterable[int],
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
        completions = list(map(as_token_ids, completions))
        splits = [
            self._split(completion, prompt)
            for completion, prompt in zip(completions, prompts, strict=True)
        ]
        runs = [run for one in splits for run in one.thinking + one.response]
        texts = iter(self.decode([run for run in runs if isinstance(run, list)]))
        results = [
            _put_together(one, texts, reason)
            for one, reason in zip(splits, finish_reasons, strict=True)
        ]
        for token_ids, result in zip(completions, results, strict=True):
            first = self._tokenizer.convert_ids_to_tokens(token_ids[:1])
            answer = "" if result.markers_in_text else result.response or ""
            families.warn_of_unused(self._markers, first, answer)
        return results

    def decode(self, sequences: list[list[int]]) -> list[str]:
        """Decode, without special tokens. ValueError for another model's tokens."""
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

    def _split(self, token_ids: list[int], prompt: Iterable[int] | None) -> Split:
        known = prompt is not None
        prompt = as_token_ids(prompt) if known else self._usual_prompt
        turn = last_turn(prompt, known, self._turn_ids)
        split = SPLITS[type(self._markers)]
        return split(token_ids, turn, self._markers, lambda ids: self.decode([ids])[0])

    @cached_property
    def _usual_prompt(self) -> list[int]:
        """The prompt that the chat template makes of a question; empty if it fails."""
        question = [{"role": "user", "content": "Hello"}]
        try:
            return self._tokenizer.apply_chat_template(
                question, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception:  # No template, or one that wants tools or a system prompt.
            return []

    @cached_property
    def _turn_ids(self) -> frozenset[int]:
        """The tokens that begin or end turns: special, or in the chat template.

        In DeepSeek-R1's distilled models `<｜User｜>` is not special. White space (of
        Gemma) marks no turns, and neither do markers of thinking.
        """
        if isinstance(self._markers, families.Channels):
            return self._markers.breaks
        template = str(getattr(self._tokenizer, "chat_template", None) or "")
        found = set(self._tokenizer.all_special_ids)
        for token_id, (text, special) in families.added_tokens(self._tokenizer).items():
            written = text in template or token_id in self._usual_prompt
            if special or (text.strip() and (written or not template)):
                found.add(token_id)
        if isinstance(self._markers, families.Pairs):
            found -= self._markers.texts.keys()
        return frozenset(found)


def _put_together(
    parts: Split, texts: Iterator[str], finish_reason: str | None
) -> ThinkingResult:
    """Make a result of one completion's runs and of their texts, in that order."""
    thinking, response = (
        "".join(run if isinstance(run, str) else next(texts) for run in runs).strip()
        for runs in (parts.thinking, parts.response)
    )
    first, _, rest = thinking.partition("\n")
    if parts.label and first == parts.label:
        thinking = rest.lstrip()
    counts = parts.thinking_tokens, parts.response_tokens, finish_reason
    answer = None if parts.phase == "thinking" else response
    return ThinkingResult(thinking, answer, *counts, parts.markers_in_text)


def parse_thinking_response(
    token_ids: Iterable[int],
    tokenizer: Any,
    *,
    prompt_token_ids: Iterable[int] | None = None,
    finish_reason: str | None = None,
    markers: tuple[str, str] | None = None,
) -> ThinkingResult:
    """Split one completion into thinking and answer.

    `token_ids` are the generated tokens only, without the prompt. The thinking was
    opened if the completion begins with a start marker, else if `prompt_token_ids`
    (`RequestOutput.prompt_token_ids` of vLLM) end with one, else if the tokenizer's
    generation prompt does. Without `prompt_token_ids` a lone end marker still cuts;
    after a prompt that is known not to have opened the thinking, it is text.
    `finish_reason` is that of vLLM's `CompletionOutput`. `markers` are the model's own
    start and end marker where it is of no known family.

    Raises TypeError for a nested sequence or what is no tokenizer, and ValueError for
    tokens that the tokenizer can't have made.
    """
    parser = ThinkingParser(tokenizer, markers)
    return parser.parse(token_ids, prompt_token_ids, finish_reason)


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
    nothing = [None] * len(completions)
    prompts = nothing if prompt_token_ids is None else prompt_token_ids
    reasons = nothing if finish_reasons is None else finish_reasons
    if isinstance(reasons, str):
        raise ValueError(f"finish_reasons={reasons!r}: give one for each completion")
    parser = ThinkingParser(tokenizer, markers)
    return parser.parse_all(completions, prompts, reasons)


class ThinkingStream:
    """The same for a completion that is being written.

    `feed` only keeps the tokens. `result` parses all of them again, so ask for it once
    for each time that you draw, not for each token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_token_ids: Iterable[int] | None = None,
        markers: tuple[str, str] | None = None,
    ) -> None:
        self._parser = ThinkingParser(tokenizer, markers)
        self._prompt = prompt_token_ids
        if prompt_token_ids is not None:
            self._prompt = as_token_ids(prompt_token_ids)
        self._token_ids: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> None:
        """Take the next tokens, in portions of any size."""
        self._token_ids += as_token_ids(token_ids)

    def result(self, finish_reason: str | None = None) -> ThinkingResult:
        """Parse the tokens so far, whose last character may be half written."""
        return self._parser.parse(self._token_ids, self._prompt, finish_reason)
