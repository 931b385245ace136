"""Tell a thinking model's thinking from its answer, by token and not by text.

The first end marker among the generated tokens is the cut. What the model writes after
it is the answer, as it is: a marker that appears there again stays in the text.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any, Literal, NamedTuple

# The known pairs; a tokenizer that has both tokens of a pair uses that pair.
THINK_MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, tiny-thinker
    ("[THINK]", "[/THINK]"),  # Mistral's reasoning models
)

# `</think>` in Qwen3's vocabulary, from Qwen/Qwen3-4B-Thinking-2507's tokenizer_config.
# Parsing never uses it: other tokenizers have other ids.
THINK_END_TOKEN_ID = 151668

INCOMPLETE_HINT = "The thinking is not finished: raise max_tokens and generate again."

_REPLACEMENT = "\ufffd"  # What decoding shows for bytes that are no whole character.

_Phase = Literal["before", "thinking", "answer"]


class _Texts(NamedTuple):
    thinking: str
    response: str | None


class ThinkingResult(_Texts):
    """One parsed completion; unpacks as `thinking, response`, both stripped.

    `response` is None while the thinking is unfinished. `thinking_tokens` and
    `response_tokens` count generated tokens, an end-of-turn token included; the markers
    that cut are in neither. `finish_reason` is vLLM's, None if it was not given.
    """

    thinking_tokens: int = 0
    response_tokens: int = 0
    finish_reason: str | None = None

    def __new__(
        cls,
        thinking: str,
        response: str | None,
        thinking_tokens: int = 0,
        response_tokens: int = 0,
        finish_reason: str | None = None,
    ) -> "ThinkingResult":
        self = super().__new__(cls, thinking, response)
        self.thinking_tokens = thinking_tokens
        self.response_tokens = response_tokens
        self.finish_reason = finish_reason
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

    def __repr__(self) -> str:
        text = (
            f"ThinkingResult(thinking={self.thinking!r}, response={self.response!r}, "
            f"thinking_tokens={self.thinking_tokens}, "
            f"response_tokens={self.response_tokens}, "
            f"finish_reason={self.finish_reason!r})"
        )
        if self.complete:
            return text
        if self.truncated:
            return f"{text}  # {INCOMPLETE_HINT}"
        return f"{text}  # The model ended before it had closed its thinking."


class ThinkingDelta(NamedTuple):
    """Text that became known with the last tokens.

    `moved` means that what was given as `response` before was thinking after all:
    append it to the thinking, clear the response, then append these two texts.
    """

    thinking: str
    response: str
    moved: bool = False


class _Markers(NamedTuple):
    start_id: int
    end_id: int
    start: str
    end: str


def _inner(tokenizer: Any) -> Any:
    # Multimodal models come with a processor, which holds the tokenizer.
    return getattr(tokenizer, "tokenizer", tokenizer)


def _find_markers(tokenizer: Any) -> _Markers | None:
    for start, end in THINK_MARKERS:
        ids = tokenizer.convert_tokens_to_ids([start, end])
        # An unknown token gives None or the id of another token, by the tokenizer.
        if None not in ids and tokenizer.convert_ids_to_tokens(ids) == [start, end]:
            return _Markers(*ids, start, end)
    return None


def _is_special(tokenizer: Any, token_id: int) -> bool:
    return not tokenizer.decode([token_id], skip_special_tokens=True) and bool(
        tokenizer.decode([token_id], skip_special_tokens=False)
    )


def _phase_after(prompt: Sequence[int], tokenizer: Any, markers: _Markers) -> _Phase:
    """Where a prompt leaves its completion: only its last turn counts.

    A marker in an earlier turn says nothing, be it a user's question about `<think>` or
    the `[THINK]` of Ministral's system prompt: a special token, which begins or ends
    turns, comes between it and the completion.
    """
    for token_id in reversed(prompt):
        if token_id == markers.start_id:
            return "thinking"
        if token_id == markers.end_id:
            return "answer"
        if _is_special(tokenizer, token_id):
            break
    return "before"


def _first_phase(
    tokenizer: Any, markers: _Markers | None, prompt: Sequence[int] | None
) -> tuple[_Phase, bool]:
    """The phase in which a completion begins, and whether that is certain."""
    if markers is None:
        return "answer", True
    if prompt is not None:
        return _phase_after(_as_list(prompt), tokenizer, markers), True
    if getattr(tokenizer, "chat_template", None) is None:
        return "before", False
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = tokenizer.encode(text, add_special_tokens=False)
    opened = _phase_after(prompt, tokenizer, markers) == "thinking"
    return ("thinking" if opened else "before"), False


def _as_list(token_ids: Iterable[int]) -> list[int]:
    # Tensors give their numbers at once by tolist, and 0-d tensors one by one else.
    tolist = getattr(token_ids, "tolist", None)
    try:
        return [index(i) for i in (token_ids if tolist is None else tolist())]
    except TypeError:
        raise TypeError(
            "expected the token ids of one completion, got text or a nested sequence; "
            "for several completions use parse_thinking_responses"
        ) from None


class _Cutter:
    """The rules: which part each generated token belongs to."""

    def __init__(
        self, tokenizer: Any, markers: _Markers | None, phase: _Phase, certain: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._certain = certain
        self.phase = phase
        self._lead: list[int] = []  # What came before the first marker.
        self._marker_seen = False
        self.thinking_tokens = 0
        self.response_tokens = 0

    def cut(self, token_ids: Iterable[int]) -> Iterator[list[int] | str | None]:
        """Give the pieces that belong to the phase in `self.phase` at that moment.

        A list holds tokens to decode, a string is a marker that counts as text, and
        None says that the response so far turned out to be thinking.
        """
        run: list[int] = []
        markers = self._markers
        for token_id in token_ids:
            if markers is None or token_id not in markers[:2]:
                run.append(token_id)
                continue
            if run:
                yield self._count(run)
                run = []
            first, self._marker_seen = not self._marker_seen, True
            is_start = token_id == markers.start_id
            if is_start and self.phase == "before":
                self.phase = "thinking"
            elif is_start and self.phase == "thinking" and first and self._blank():
                pass  # The model opened once more what the prompt had opened.
            elif not is_start and self.phase == "thinking":
                self.phase = "answer"
            elif not is_start and self.phase == "before" and not self._certain:
                # Closed without an opening: the prompt that we were not shown had it.
                self.thinking_tokens, self.response_tokens = self.response_tokens, 0
                yield None
                self.phase = "answer"
            else:
                self._add(1)
                yield markers.start if is_start else markers.end
        if run:
            yield self._count(run)

    def _count(self, run: list[int]) -> list[int]:
        if not self._marker_seen and self.phase == "thinking":
            self._lead += run
        self._add(len(run))
        return run

    def _add(self, count: int) -> None:
        if self.phase == "thinking":
            self.thinking_tokens += count
        else:
            self.response_tokens += count

    def _blank(self) -> bool:
        return not _decode(self._tokenizer, [self._lead])[0].strip()

    def result(
        self, thinking: str, response: str, finish_reason: str | None
    ) -> ThinkingResult:
        return ThinkingResult(
            thinking,
            None if self.phase == "thinking" else response,
            self.thinking_tokens,
            self.response_tokens,
            finish_reason,
        )


def _decode(tokenizer: Any, sequences: list[list[int]]) -> list[str]:
    # Without the clean-up, which some tokenizers have on and which changes the text.
    return tokenizer.batch_decode(
        sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def parse_thinking_response(
    token_ids: Iterable[int],
    tokenizer: Any,
    *,
    prompt_token_ids: Sequence[int] | None = None,
    finish_reason: str | None = None,
) -> ThinkingResult:
    """Split one completion into thinking and answer.

    `token_ids` are the generated tokens only, without the prompt. Whether the thinking
    was opened is known from the completion's own start marker, else from
    `prompt_token_ids` (`RequestOutput.prompt_token_ids` of vLLM), else from the end of
    the tokenizer's generation prompt. With neither of the two a lone end marker still
    cuts; after a prompt that is known not to have opened the thinking, it is text.
    `finish_reason` is that of vLLM's `CompletionOutput`. Raises TypeError for a nested
    sequence.
    """
    prompts = None if prompt_token_ids is None else [prompt_token_ids]
    return parse_thinking_responses(
        [token_ids],
        tokenizer,
        prompt_token_ids=prompts,
        finish_reasons=[finish_reason],
    )[0]


def parse_thinking_responses(
    completions: Iterable[Iterable[int]],
    tokenizer: Any,
    *,
    prompt_token_ids: Sequence[Sequence[int] | None] | None = None,
    finish_reasons: Sequence[str | None] | None = None,
) -> list[ThinkingResult]:
    """Parse many completions as `parse_thinking_response` does, decoding all at once.

    `prompt_token_ids` and `finish_reasons`, where given, have one entry for each
    completion; ValueError if they have not.
    """
    tokenizer = _inner(tokenizer)
    completions = [_as_list(ids) for ids in completions]
    count = len(completions)
    prompts = [None] * count if prompt_token_ids is None else prompt_token_ids
    reasons = [None] * count if finish_reasons is None else finish_reasons
    markers = _find_markers(tokenizer)
    # The chat template is rendered once, and only where no prompt answers.
    unknown = any(prompt is None for prompt in prompts)
    template = _first_phase(tokenizer, markers, None) if unknown else None

    to_decode: list[list[int]] = []
    parsed = []
    for token_ids, prompt, reason in zip(completions, prompts, reasons, strict=True):
        if prompt is None:
            phase, certain = template
        else:
            phase, certain = _first_phase(tokenizer, markers, prompt)
        cutter = _Cutter(tokenizer, markers, phase, certain)
        thinking: list[int | str] = []  # A marker as text, or an index to to_decode.
        response: list[int | str] = []
        for piece in cutter.cut(token_ids):
            if piece is None:
                thinking, response = response, []
                continue
            part = thinking if cutter.phase == "thinking" else response
            if isinstance(piece, list):
                part.append(len(to_decode))
                to_decode.append(piece)
            else:
                part.append(piece)
        parsed.append((cutter, thinking, response, reason))

    decoded = _decode(tokenizer, to_decode) if to_decode else []

    def text(part: list[int | str]) -> str:
        return "".join(p if isinstance(p, str) else decoded[p] for p in part).strip()

    return [
        cutter.result(text(thinking), text(response), reason)
        for cutter, thinking, response, reason in parsed
    ]


class _Detokenizer:
    """Decode a growing list of tokens: what it gave, put together, is the whole text.

    Text that ends in a replacement character is held back, for its missing bytes may be
    in the next token. Exact whatever the bytes for byte-level tokenizers, as all
    supported models have; for SentencePiece's byte fallback where its characters are
    whole and stand between words, for one bad byte there spoils all bytes around it.
    """

    HELD = 16  # Tokens held at most, roughly: else bytes that never fit cost n * n.

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: list[int]) -> str:
        self._pending += token_ids
        text = self._text(self._pending)
        held = len(self._pending) <= self.HELD
        if not text and held:  # A text's first space: it counts before what follows.
            return ""
        if not text.endswith(_REPLACEMENT):
            return self._give(len(self._pending), text)
        if held:
            return ""
        for tail in range(4, 8):  # No character has more than 4 bytes.
            cut = len(self._pending) - tail
            head = self._text(self._pending[:cut])
            rest = _decode(self._tokenizer, [self._pending[cut:]])[0]
            # Where the halves make the whole no character spans the cut, nor will one.
            if head and rest and head + rest == text:
                return self._give(cut, head)
        return ""

    def flush(self) -> str:
        """Give what was held back; the next token begins a text of its own."""
        text = self._text(self._pending)
        self._context, self._pending = [], []
        return text

    def _text(self, token_ids: list[int]) -> str:
        before, whole = _decode(
            self._tokenizer, [self._context, self._context + token_ids]
        )
        return whole[len(before) :]

    def _give(self, count: int, text: str) -> str:
        given = self._pending[:count]
        # SentencePiece drops a text's first space, so the next tokens are decoded after
        # the last ones: some four to seven, that begin with a whole character.
        for tail in (given[-length:] for length in range(4, 8)):
            tail_text = _decode(self._tokenizer, [tail])[0]
            if tail_text and text.endswith(tail_text):
                self._context = tail
                break
        del self._pending[:count]
        return text


class _Stripped:
    """Text put together piece by piece and stripped all the while."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._space = ""

    def add(self, text: str) -> str:
        text = self._space + text
        if not self._parts:
            text = text.lstrip()
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._parts.append(body)
        return body

    def __str__(self) -> str:
        return "".join(self._parts)


class ThinkingStream:
    """The same rules for tokens that arrive bit by bit.

    Feed each token once, in any portions; `finish` gives the result that parsing all of
    them at once would give. The deltas and what `finish` still found add up to it, but
    for one case: text before a start marker that is never closed was given as response,
    and the result has None.
    """

    def __init__(
        self, tokenizer: Any, *, prompt_token_ids: Sequence[int] | None = None
    ) -> None:
        tokenizer = _inner(tokenizer)
        markers = _find_markers(tokenizer)
        phase, certain = _first_phase(tokenizer, markers, prompt_token_ids)
        self._cutter = _Cutter(tokenizer, markers, phase, certain)
        self._detokenizer = _Detokenizer(tokenizer)
        self._thinking = _Stripped()
        self._response = _Stripped()
        self._finished = False

    @property
    def is_thinking(self) -> bool:
        """True while the next token belongs to the thinking."""
        return self._cutter.phase == "thinking"

    def feed(self, token_ids: Iterable[int]) -> ThinkingDelta:
        """Take the next tokens and give the text that is sure by now.

        Raises RuntimeError after `finish`.
        """
        if self._finished:
            raise RuntimeError("this stream is finished: make a new ThinkingStream")
        thinking, response, moved = "", "", False
        phase = self._cutter.phase

        def add(text: str) -> None:
            nonlocal thinking, response
            if phase == "thinking":
                thinking += self._thinking.add(text)
            else:
                response += self._response.add(text)

        for piece in self._cutter.cut(_as_list(token_ids)):
            if piece is None or isinstance(piece, str) or self._cutter.phase != phase:
                add(self._detokenizer.flush())
                phase = self._cutter.phase
            if piece is None:
                self._thinking, self._response = self._response, _Stripped()
                thinking, response, moved = response, "", True
            else:
                is_text = isinstance(piece, str)
                add(piece if is_text else self._detokenizer.push(piece))
        if self._cutter.phase != phase:
            add(self._detokenizer.flush())
        return ThinkingDelta(thinking, response, moved)

    def finish(self, finish_reason: str | None = None) -> ThinkingResult:
        """End the stream and give the whole result."""
        if not self._finished:
            self._finished = True
            part = self._thinking if self.is_thinking else self._response
            part.add(self._detokenizer.flush())
        return self._cutter.result(
            str(self._thinking), str(self._response), finish_reason
        )
