"""Tell a thinking model's thinking from its answer, by token and not by text.

In go generated token ids and their tokenizer; out comes a `ThinkingResult`. The first
end marker is the cut, and all text after it the answer, as the model wrote it. Only
where a tokenizer has no tokens for markers are they looked for in the text.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any

from .internals.thinking.families import find_markers, unwrap_tokenizer, warn_of_unused
from .internals.thinking.splitting import Split, Turn

Ids = Iterable[int]

# `</think>` of Qwen3, to compare with: parsing never uses it, as others have other ids.
THINK_END_TOKEN_ID = 151668

INCOMPLETE_HINT = "The thinking is not finished: raise max_tokens and generate again."


@dataclass(frozen=True, repr=False)
class ThinkingResult:
    """One parsed completion; unpacks as `thinking, response`, both stripped.

    Its counts include an end-of-turn token and leave out the markers that cut. If the
    model spelled these in letters, they count as thinking.
    """

    thinking: str
    response: str | None  # None while the thinking is unfinished; see `hint`.
    thinking_tokens: int = 0
    response_tokens: int = 0
    finish_reason: str | None = None
    markers_in_text: bool = False  # True where these are spelled in letters.

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
        ran_out = self.finish_reason == "length"
        return ran_out or not (self.complete or self.finish_reason)

    @property
    def hint(self) -> str:
        """The reason for a missing response, and the remedy; "" for a complete one."""
        stopped = "It was stopped while it was thinking."  # vLLM's word is "abort".
        known = {None: INCOMPLETE_HINT, "length": INCOMPLETE_HINT, "abort": stopped}
        ended = "The model ended before it had closed its thinking."
        return "" if self.complete else known.get(self.finish_reason, ended)

    def __repr__(self) -> str:
        facts = [f"{k}={v!r}" for k, v in vars(self).items() if v is not False]
        hint = f"  # {self.hint}" if self.hint else ""
        return f"ThinkingResult({', '.join(facts)}){hint}"


class ThinkingParser:
    """Parses the completions of one tokenizer, whose markers it looks up only once."""

    def __init__(self, tokenizer: Any, markers: tuple[str, str] | None = None) -> None:
        self._tokenizer = unwrap_tokenizer(tokenizer)
        self._markers = find_markers(self._tokenizer, markers)
        added = self._tokenizer.added_tokens_decoder
        # Mistral's tokenizer knows its special tokens only.
        self._added = added if isinstance(added, Mapping) else {}
        special = {i for i, token in self._added.items() if token.special}
        special.update(self._tokenizer.all_special_ids)
        self._special = special - self._markers.texts.keys()

    def parse(
        self, token_ids: Ids, prompt: Ids | None = None, reason: str | None = None
    ) -> ThinkingResult:
        """Split one completion, as `parse_thinking_response` does."""
        (result,) = self.parse_all([(token_ids, prompt)])
        return replace(result, finish_reason=reason)

    def parse_all(self, cases: Iterable[tuple]) -> list[ThinkingResult]:
        """Split completions, each given with its prompt or None; decode all at once."""
        cases = [(as_token_ids(token_ids), prompt) for token_ids, prompt in cases]
        splits = [self._split(token_ids, prompt) for token_ids, prompt in cases]
        runs = [run for split in splits for run in split.thinking + split.response]
        texts, results = iter(self.decode(runs)), []
        for (token_ids, _), split in zip(cases, splits, strict=True):
            parts = split.thinking, split.response
            counts = [sum(map(len, part)) for part in parts]
            decoded = ["\n".join(next(texts) for _ in part).strip() for part in parts]
            thinking, response = split.spelled or decoded
            label, _, rest = thinking.partition("\n")
            thinking = rest.lstrip() if label == self._markers.label else thinking
            answer, in_text = response if split.complete else None, bool(split.spelled)
            results.append(ThinkingResult(thinking, answer, *counts, None, in_text))
            first = self._tokenizer.convert_ids_to_tokens(token_ids[:1])
            warn_of_unused(self._markers, first, "" if in_text else answer or "")
        return results

    def decode(self, sequences: list[list[int]]) -> list[str]:
        """Decode, without special tokens. ValueError for another model's tokens."""
        hidden = self._special | self._markers.hidden
        ids = [[i for i in token_ids if i not in hidden] for token_ids in sequences]
        try:
            # Some tokenizers' clean-up would change the text.
            return self._tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        except (KeyError, IndexError, OverflowError) as error:
            why = f"pass the tokenizer of the model that wrote these tokens ({error})"
            raise ValueError(why) from error

    def _split(self, token_ids: list[int], prompt: Ids | None) -> Split:
        known = prompt is not None
        prompt = as_token_ids(prompt) if known else self._usual_prompt
        places = range(len(prompt), 0, -1)
        begin = next((i for i in places if prompt[i - 1] in self._turn_ids), 0)
        turn = Turn(prompt[begin:], known, begin == 0)
        return self._markers.split(token_ids, turn, lambda ids: self.decode([ids])[0])

    @cached_property
    def _usual_prompt(self) -> list[int]:
        """The prompt that the chat template makes of a question; empty if it fails."""
        question = [{"role": "user", "content": "Hello"}]
        form = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        try:
            return self._tokenizer.apply_chat_template(question, **form)
        except Exception:  # No template, or one that wants tools or a system prompt.
            return []

    @cached_property
    def _turn_ids(self) -> frozenset[int]:
        """The tokens that begin or end turns: special, or in the chat template.

        In DeepSeek-R1's distilled models `<｜User｜>` is not special. White space (of
        Gemma) marks no turns, and neither do markers of thinking.
        """
        if self._markers.breaks:
            return self._markers.breaks
        template = str(getattr(self._tokenizer, "chat_template", None) or "")
        added = {i: t.content for i, t in self._added.items() if t.content.strip()}
        written = {i for i in added if added[i] in template or i in self._usual_prompt}
        found = self._special | (written if template else added.keys())
        return frozenset(found - self._markers.texts.keys())


def parse_thinking_response(
    token_ids: Ids,
    tokenizer: Any,
    *,
    prompt_token_ids: Ids | None = None,
    finish_reason: str | None = None,
    markers: tuple[str, str] | None = None,
) -> ThinkingResult:
    """Split one completion, its generated tokens only, into thinking and answer.

    The thinking was opened if the completion begins with a start marker, else if
    `prompt_token_ids` (of vLLM's `RequestOutput`) end with one, else if the tokenizer's
    generation prompt does. Without `prompt_token_ids` a lone end marker still cuts;
    after a prompt that is known not to have opened the thinking, it is text.
    `finish_reason` is that of vLLM's `CompletionOutput`. `markers` are the model's own
    start and end marker, tokens or not, where it is of no family in `THINK_MARKERS`.
    Raises TypeError for a nested sequence or what is no tokenizer, and ValueError for
    tokens that the tokenizer can't have made.
    """
    parser = ThinkingParser(tokenizer, markers)
    return parser.parse(token_ids, prompt_token_ids, finish_reason)


def parse_thinking_responses(
    completions: Iterable[Ids],
    tokenizer: Any,
    *,
    prompt_token_ids: Iterable[Ids | None] | None = None,
    markers: tuple[str, str] | None = None,
) -> list[ThinkingResult]:
    """Parse many completions as `parse_thinking_response` does, decoding all at once.

    `prompt_token_ids` has one entry for each completion; ValueError if it has not.
    """
    completions = list(completions)
    given = [None] * len(completions) if prompt_token_ids is None else prompt_token_ids
    cases = zip(completions, given, strict=True)
    return ThinkingParser(tokenizer, markers).parse_all(cases)


class ThinkingStream:
    """Parses a completion that is being written, all of it for each `result`."""

    def __init__(self, tokenizer: Any, prompt_token_ids: Ids | None = None) -> None:
        self._parser = ThinkingParser(tokenizer)
        known = prompt_token_ids is not None
        self._prompt = as_token_ids(prompt_token_ids) if known else None
        self._token_ids: list[int] = []

    def feed(self, token_ids: Ids) -> None:
        """Take the next tokens, in portions of any size."""
        self._token_ids += as_token_ids(token_ids)

    def result(self, finish_reason: str | None = None) -> ThinkingResult:
        """Parse the tokens so far, whose last character may be half written."""
        return self._parser.parse(self._token_ids, self._prompt, finish_reason)


def as_token_ids(token_ids: Any) -> list[int]:
    """Make a list of token ids from an array, a tensor or a tokenizer's result.

    Raises TypeError for anything else and ValueError for negative numbers.
    """
    ids = token_ids.get("input_ids") if isinstance(token_ids, Mapping) else token_ids
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        # Python takes bytes for numbers, and a set has no order.
        unfit = isinstance(ids, bytes | bytearray | Set)
        ids = list(map(index, None if unfit else ids))
    except TypeError:
        why = "expected the token ids of one completion or prompt, in a flat sequence"
        raise TypeError(why) from None
    if min(ids, default=0) < 0:
        raise ValueError(f"{min(ids)} is no token id: leave out padding and masks")
    return ids
