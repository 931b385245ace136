"""The rules that say which tokens are thinking and which are the answer.

There is one class for each way to mark thinking; `families` finds its tokens. In go a
completion, finished or not, and the last turn of its prompt. Out comes a `Split`.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Turn(NamedTuple):
    """The end of a prompt, after its last token that begins or ends a turn."""

    token_ids: list[int]
    known: bool  # False where nobody gave the prompt: it is the tokenizer's usual one.
    whole: bool  # True where the prompt has no such token.


class Split(NamedTuple):
    """The tokens of a completion's two parts; each list of them begins a new line."""

    thinking: list[list[int]]
    response: list[list[int]]
    complete: bool = True  # False while the thinking is open.
    spelled: tuple[str, str] | None = None  # The two texts, if the markers are letters.


@dataclass(kw_only=True)
class Markers:
    """What a tokenizer has to mark thinking; `split` cuts a completion there."""

    texts: dict[int, str] = field(default_factory=dict)  # Of tokens, if nothing is cut.
    hidden: frozenset[int] = frozenset()  # Tokens that are never part of the text.
    breaks: frozenset[int] = frozenset()  # Tokens that end messages.
    label: str = ""  # A first line that is no part of the thinking.


@dataclass
class Pairs(Markers):
    """Start and end markers that are tokens."""

    ends: dict[int, int]  # The end marker of each start marker.
    opens_late = True  # Text may stand before a start marker.

    def split(self, token_ids: list[int], turn: Turn, decode: Callable) -> Split:
        """Cut at the first end marker that belongs to the open start marker."""
        last = next((i for i in reversed(turn.token_ids) if i in self.texts), None)
        opened = last in self.ends
        if last is not None and turn.known and not opened:
            return Split([], [token_ids])
        # A lone end marker tells that the prompt, which nobody gave, had the start.
        sought = self.ends if turn.known and not opened else self.texts
        marker = next((i for i in token_ids if i in sought), None)
        before, after = _cut(token_ids, marker)
        end = self.ends.get(marker)
        if opened:
            if end == self.ends[last] and not (before and decode(before).strip()):
                token_ids = before + after  # The completion has opened it once more.
            thinking, response = _cut(token_ids, self.ends[last])
            return Split([thinking], [response], self.ends[last] in token_ids)
        if end is not None and (self.opens_late or not decode(before)):
            thinking, response = _cut(after, end)
            return Split([thinking], [before + response], end in after)
        lone = marker is not None and end is None
        return Split([before], [after]) if lone else Split([], [token_ids])


class SpelledPairs(Pairs):
    """Pairs that have no tokens here: a model can only spell them in letters."""

    opens_late = False  # The model may be writing about markers.

    def split(self, token_ids: list[int], turn: Turn, decode: Callable) -> Split:
        """Cut the text by the same rules; its markers are counted with the thinking."""
        longest_first = sorted(self.texts, reverse=True)
        marker = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        text, prompt = decode(token_ids), marker.split(decode(turn.token_ids).rstrip())
        if turn.whole and prompt[-1]:
            prompt = []  # Only the very end of a base model's text opens the thinking.
        pieces = marker.split(text.lstrip())
        split = super().split(pieces, turn._replace(token_ids=prompt), "".join)
        if not split.thinking:
            return Split([], [token_ids])
        thinking, response = map("".join, split.thinking + split.response)
        texts = thinking.strip(), response.strip()
        # The tokens that it takes to write all text before the answer.
        before, count = text.removesuffix(response), len(token_ids)
        if split.complete:
            count = bisect_left(
                range(count), 1, key=lambda n: decode(token_ids[:n]).startswith(before)
            )
        return Split([token_ids[:count]], [token_ids[count:]], split.complete, texts)


@dataclass
class Channels(Markers):
    """Messages that name their channel; no text stands between two of them."""

    name: int  # Stands before the channel's name.
    body: int  # Stands after it.
    thinking: str  # The channel that is thinking.

    def split(self, token_ids: list[int], turn: Turn, decode: Callable) -> Split:
        """Sort messages by the channel that they name."""
        messages: dict[bool, list[list[int]]] = {True: [], False: [[]]}
        target, name, thinks = messages[False][0], [], None
        # The completion may continue the last message of the prompt.
        for tokens in (turn.token_ids, token_ids):
            for message in messages[True] + messages[False]:
                message.clear()
            for token_id in tokens:
                if token_id == self.name:
                    target = name = []
                    thinks = thinks is None or thinks  # No answer yet.
                elif token_id == self.body:
                    thinks = decode(name).split()[:1] == [self.thinking]
                    target, name = [], []
                    messages[thinks].append(target)
                elif token_id in self.breaks:
                    target, name = [], []
                else:
                    target.append(token_id)
        return Split(messages[True], messages[False], not thinks)


def _cut(token_ids: list[int], marker: int | None) -> tuple[list[int], list[int]]:
    """Give the tokens before the first `marker` and after it; all if there is none."""
    place = token_ids.index(marker) if marker in token_ids else len(token_ids)
    return token_ids[:place], token_ids[place + 1 :]
