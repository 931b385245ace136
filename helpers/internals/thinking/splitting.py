"""The rules: which part of a completion is thinking, and which is the answer.

There is one class for each way to mark it. All are fed in pieces of any size, so that
a finished completion and one that is still being written go the same way: `cut` the
tokens, decode each piece, `add` its text.
"""

from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Literal, NamedTuple

from .families import ChannelTokens, PairTokens, SpelledPairs, warn_once

Phase = Literal["before", "thinking", "answer"]
Decode = Callable[[list[int]], str]


class Piece(NamedTuple):
    """A run of tokens to decode; without tokens a marker, which ends the run before.

    `text` is what the marker adds to the text. `moved` says that what counted as answer
    so far was thinking.
    """

    is_thinking: bool
    token_ids: list[int] = []
    text: str = ""
    moved: bool = False


class ThinkingDelta(NamedTuple):
    """Text that became known with the last tokens.

    `moved` means that what was given as `response` before was thinking after all:
    append it to the thinking, clear the response, then append these two texts.
    """

    thinking: str
    response: str
    moved: bool = False

    def then(self, later: "ThinkingDelta") -> "ThinkingDelta":
        """Both as one."""
        if later.moved:
            thinking = self.thinking + self.response + later.thinking
            return ThinkingDelta(thinking, later.response, True)
        return ThinkingDelta(
            self.thinking + later.thinking, self.response + later.response, self.moved
        )


class StrippedText:
    """Text put together piece by piece, stripped all the while.

    A first line that is `label` is left out.
    """

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._parts: list[str] = []
        self._held = ""  # Maybe trailing white space, or the label.

    def add(self, text: str) -> str:
        """Take more text, and give what is sure to belong to the whole by now."""
        text = self._held + text
        if not self._parts:
            text = text.lstrip()
            line, newline, rest = text.partition("\n")
            if self._label and line == self._label and newline:
                text, self._label = rest.lstrip(), ""
            elif self._label and not newline and self._label.startswith(line):
                self._held = text
                return ""
        body = text.rstrip()
        self._held = text[len(body) :]
        if body:
            self._parts.append(body)
        return body

    def __str__(self) -> str:
        held = "" if self._parts else self._held.strip()
        return "".join(self._parts) + ("" if held == self._label else held)


def last_turn(prompt: list[int], turn_ids: Container[int]) -> list[int]:
    """What follows the last token that ends a turn: what came before does not count.

    An earlier turn may have any marker, be it in a user's question about `<think>` or
    in the system prompt of Ministral, which explains `[THINK]`.
    """
    places = (i for i in range(len(prompt), 0, -1) if prompt[i - 1] in turn_ids)
    return prompt[next(places, 0) :]


class Splitter:
    """What all ways share: the two texts, and how many tokens each has.

    Each way has a method `begin`, which learns from a prompt where it leaves the
    completion (`turn_ids` are the tokens that end a turn; if `known` is False, it is
    not the real prompt but the tokenizer's usual one), and one that takes a marker.
    """

    markers_in_text = False

    def __init__(self, marker_ids: Container[int], label: str = "") -> None:
        self._marker_ids = marker_ids
        self.phase: Phase = "before"
        self.thinking = StrippedText(label)
        self.response = StrippedText()
        self.thinking_tokens = 0
        self.response_tokens = 0

    @property
    def is_thinking(self) -> bool:
        return self.phase == "thinking"

    def cut(self, token_ids: list[int]) -> Iterator[Piece]:
        """The pieces of these tokens, in their order."""
        begin = 0
        for place, token_id in enumerate(token_ids):
            if token_id in self._marker_ids:
                if begin < place:
                    yield self._run(token_ids[begin:place])
                yield self._marker(token_id)
                begin = place + 1
        if begin < len(token_ids):
            yield self._run(token_ids[begin:])

    def add(self, piece: Piece, text: str) -> ThinkingDelta:
        """Take the text of a piece, and give what is sure by now."""
        if piece.moved:
            self.thinking, self.response = self.response, StrippedText()
        part = self.thinking if piece.is_thinking else self.response
        new = part.add(text)
        thinking, response = (new, "") if piece.is_thinking else ("", new)
        return ThinkingDelta(thinking, response, piece.moved)

    def finish(self) -> ThinkingDelta:
        """Give the text that waited for more."""
        return ThinkingDelta("", "")

    def _count(self, tokens: int) -> None:
        if self.is_thinking:
            self.thinking_tokens += tokens
        else:
            self.response_tokens += tokens

    def _run(self, token_ids: list[int]) -> Piece:
        self._count(len(token_ids))
        return Piece(self.is_thinking, token_ids)


class PairSplitter(Splitter):
    """A start and an end marker: the first end marker is the cut."""

    def __init__(self, tokens: PairTokens, decode: Decode) -> None:
        super().__init__(tokens.texts.keys() | tokens.wrappers, tokens.label)
        self._tokens = tokens
        self._decode = decode
        self._end: int | None = None  # What closes the thinking that is open.
        self._lead: list[int] = []  # What came before the first marker.
        self._first = True
        self._prompt_known = False

    def begin(self, prompt: list[int], turn_ids: frozenset[int], known: bool) -> None:
        self._prompt_known = known
        turn = last_turn(prompt, turn_ids - self._tokens.texts.keys())
        last = next((i for i in reversed(turn) if i in self._tokens.texts), None)
        if last in self._tokens.ends:
            self.phase, self._end = "thinking", self._tokens.ends[last]
        elif last is not None and known:
            self.phase = "answer"

    def _run(self, token_ids: list[int]) -> Piece:
        if self._first and self.is_thinking:
            self._lead += token_ids
        return super()._run(token_ids)

    def _marker(self, token_id: int) -> Piece:
        if token_id in self._tokens.wrappers:
            self._count(1)
            return Piece(self.is_thinking)
        first, self._first = self._first, False
        end = self._tokens.ends.get(token_id)  # None for an end marker.
        moved = False
        if end is not None and self.phase == "before":
            self.phase, self._end = "thinking", end
        elif end == self._end and self.is_thinking and first and self._lead_is_blank():
            pass  # The prompt had opened it already.
        elif token_id == self._end and self.is_thinking:
            self.phase = "answer"
        elif end is None and self.phase == "before" and not self._prompt_known:
            # An end without a start: the prompt, which we were not shown, had that.
            self.thinking_tokens, self.response_tokens = self.response_tokens, 0
            self.phase, moved = "answer", True
        else:
            self._count(1)
            return Piece(self.is_thinking, text=self._tokens.texts[token_id])
        return Piece(self.is_thinking, moved=moved)

    def _lead_is_blank(self) -> bool:
        return not self._decode(self._lead).strip()


class ChannelSplitter(Splitter):
    """Messages that name their channel, of which one kind is thinking."""

    def __init__(self, tokens: ChannelTokens, decode: Decode) -> None:
        super().__init__({tokens.name, tokens.body, *tokens.breaks})
        self._tokens = tokens
        self._decode = decode
        self._name: list[int] | None = None  # the channel's name so far
        self._between = False

    def begin(self, prompt: list[int], turn_ids: frozenset[int], known: bool) -> None:
        # The completion may continue the prompt's last message.
        for _ in self.cut(last_turn(prompt, self._tokens.breaks)):
            pass
        self._between = False
        self.thinking_tokens = self.response_tokens = 0

    def _run(self, token_ids: list[int]) -> Piece:
        if self._name is not None:
            self._name += token_ids
        elif not self._between:
            return super()._run(token_ids)
        return Piece(self.is_thinking)

    def _marker(self, token_id: int) -> Piece:
        text = ""
        if token_id == self._tokens.name:
            self._name = []
            if self.phase == "before":
                self.phase = "thinking"  # No text yet, but no answer either.
        elif token_id == self._tokens.body:
            names = self._decode(self._name or []).split()
            thinks = self._tokens.thinking in names[:1]
            self.phase = "thinking" if thinks else "answer"
            self._name, text = None, "\n"
        else:
            self._name = None
        self._between = token_id in self._tokens.breaks
        return Piece(self.is_thinking, text=text)


class SpelledSplitter(Splitter):
    """Markers that the tokenizer has no tokens for, found in the text.

    A start marker opens the thinking only where it stands first: further on the model
    may be writing about markers. Marker letters are counted with the thinking.
    """

    def __init__(self, markers: SpelledPairs, decode: Decode) -> None:
        super().__init__(frozenset())
        self._pairs = markers.pairs
        self._markers = [text for pair in markers.pairs for text in pair]
        self._decode = decode
        self._token_ids: list[int] = []
        self._text = ""
        self._left_at: Phase = "before"  # Where the prompt leaves the completion.
        self._end = ""  # What closes the thinking that is open.
        self._answer_at: int | None = None  # Where in the text the answer begins.
        self.thinking = self.response = ""

    def begin(self, prompt: list[int], turn_ids: frozenset[int], known: bool) -> None:
        turn = last_turn(prompt, turn_ids)
        text = self._decode(turn).rstrip()
        if len(turn) == len(prompt):  # No turns: only the prompt's end counts.
            text = next((s for s, _ in self._pairs if text.endswith(s)), "")
        place, end = max((text.rfind(start), end) for start, end in self._pairs)
        if place > text.rfind(end):
            self._left_at, self._end = "thinking", end
        elif known:
            self._left_at = "answer"
        self.phase = self._left_at

    @property
    def markers_in_text(self) -> bool:
        return bool(self._end) or self._answer_at is not None

    def add(self, piece: Piece, text: str) -> ThinkingDelta:
        self._text += text
        return self._split(self._text[: _sure(self._text, self._markers)])

    def finish(self) -> ThinkingDelta:
        delta = self._split(self._text)
        count = len(self._token_ids)
        self.thinking_tokens = count if self.is_thinking else self._cut_token()
        self.response_tokens = count - self.thinking_tokens
        seen = [text for text in self._markers if text in self.response]
        if seen and not self.markers_in_text:
            warn_once(
                f"an answer has {seen[0]} in its text, and this tokenizer has no such "
                "token: if that is the model's thinking, pass prompt_token_ids, which "
                "tell whether it was open, or markers=(start, end)."
            )
        return delta

    def _run(self, token_ids: list[int]) -> Piece:
        self._token_ids += token_ids
        return Piece(self.is_thinking, token_ids)

    def _split(self, text: str) -> ThinkingDelta:
        """Split all text that has come, and give what is new in its parts."""
        self.phase, begin, place, marker = self._left_at, 0, -1, self._end
        first = text.lstrip()
        for start, end in self._pairs:
            if first.startswith(start) and self._end in ("", end):
                self.phase, self._end, marker = "thinking", end, end
                begin = len(text) - len(first) + len(start)
        if self.phase == "thinking":
            place = text.find(marker, begin)
        elif self.phase == "before":  # The prompt is unknown and may have opened it.
            found = [(text.find(m), m) for m in self._markers if m in text]
            place, marker = min(found, default=(-1, ""))
            if marker not in [end for _, end in self._pairs]:
                place = -1
        thinking, response = (text[begin:], "") if self.is_thinking else ("", text)
        if place >= 0:
            self.phase, self._answer_at = "answer", place + len(marker)
            thinking, response = text[begin:place], text[self._answer_at :]
        before, given = self.thinking, self.response
        self.thinking, self.response = thinking.strip(), response.strip()
        if given and self.thinking and not before:  # It was thinking after all.
            return ThinkingDelta(self.thinking[len(given) :], self.response, True)
        return ThinkingDelta(self.thinking[len(before) :], self.response[len(given) :])

    def _cut_token(self) -> int:
        """How many tokens it takes to write all text before the answer."""
        if self._answer_at is None:
            return 0
        before = self._decode(self._token_ids)[: self._answer_at]

        def written(count: int) -> bool:
            return self._decode(self._token_ids[:count])[: len(before)] == before

        return bisect_left(range(len(self._token_ids)), True, key=written)


def _sure(text: str, markers: Sequence[str]) -> int:
    """The length of the text without what at its end may be a marker's beginning."""
    for place in range(max(0, len(text) - max(map(len, markers)) + 1), len(text)):
        tail = text[place:]
        if any(marker.startswith(tail) and marker != tail for marker in markers):
            return place
    return len(text)
