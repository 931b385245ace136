"""The rules that say which tokens are thinking and which are the answer.

In go a completion, finished or not, and the last turn of its prompt. Out comes a
`Split`, whose runs of tokens the caller decodes. There is one function for each way to
mark thinking. A text that grows is split again from its beginning.
"""

from bisect import bisect_left
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .families import Channels, Pairs, SpelledPairs

Phase = Literal["before", "thinking", "answer"]
Run = list[int] | str  # Tokens to decode, or text.
Decode = Callable[[list[int]], str]


class Turn(NamedTuple):
    """The end of a prompt, after its last token that begins or ends a turn.

    `known` is False where nobody gave the prompt and the tokenizer's usual one stands
    in for it. `whole` is True where the prompt has no such token.
    """

    token_ids: list[int]
    known: bool
    whole: bool


def last_turn(prompt: list[int], known: bool, turn_ids: Container[int]) -> Turn:
    """Cut off the earlier turns of a prompt, since markers there open nothing."""
    places = (i for i in range(len(prompt), 0, -1) if prompt[i - 1] in turn_ids)
    begin = next(places, 0)
    return Turn(prompt[begin:], known, begin == 0)


@dataclass
class Split:
    """The parts of a completion, and the phase in which it ends."""

    phase: Phase = "before"
    thinking: list[Run] = field(default_factory=list)
    response: list[Run] = field(default_factory=list)
    thinking_tokens: int = 0
    response_tokens: int = 0
    label: str = ""  # A first line that is no part of the thinking.
    markers_in_text: bool = False

    def add(self, run: Run, tokens: int) -> None:
        """Append a run to the part that is being written."""
        if self.phase == "thinking":
            self.thinking.append(run)
            self.thinking_tokens += tokens
        else:
            self.response.append(run)
            self.response_tokens += tokens


def split_at_pairs(
    token_ids: list[int], turn: Turn, markers: Pairs, decode: Decode
) -> Split:
    """Cut at the first end marker that belongs to the open start marker."""
    texts, ends = markers.texts, markers.ends
    last = next((i for i in reversed(turn.token_ids) if i in texts), None)
    open_end = ends.get(last)  # The end marker that would close the thinking.
    split = Split(label=markers.label)
    if last is not None and (turn.known or last in ends):
        split.phase = "thinking" if last in ends else "answer"
    seen = False  # Whether a marker has come.
    for piece in _pieces(token_ids, texts.keys() | markers.wrappers):
        if isinstance(piece, list):
            split.add(piece, len(piece))
            continue
        if piece in markers.wrappers:
            split.add("", 1)
            continue
        thinking, end = split.phase == "thinking", ends.get(piece)
        # The prompt has opened the thinking, and the completion does so once more.
        again = thinking and end == open_end and not seen
        seen = True
        if end is not None and split.phase == "before":
            split.phase, open_end = "thinking", end
        elif again and not any(decode(run).strip() for run in split.thinking if run):
            pass
        elif thinking and piece == open_end:
            split.phase = "answer"
        elif end is None and split.phase == "before" and not turn.known:
            # The prompt, which nobody gave, must have had the start marker.
            split.thinking, split.response = split.response, []
            split.thinking_tokens, split.response_tokens = split.response_tokens, 0
            split.phase = "answer"
        else:  # The model writes about markers.
            split.add(texts[piece], 1)
    return split


def split_at_channels(
    token_ids: list[int], turn: Turn, markers: Channels, decode: Decode
) -> Split:
    """Sort messages by the channel that they name; one channel is thinking."""
    name: list[int] | None = None  # The channel's name, while it is being written.
    split = Split()
    marker_ids = {markers.name, markers.body, *markers.breaks}
    # The completion may continue the last message of the prompt.
    for tokens in (turn.token_ids, token_ids):
        split, between = Split(split.phase), False
        for piece in _pieces(tokens, marker_ids):
            if isinstance(piece, list):
                if name is not None:
                    name = name + piece
                elif not between:
                    split.add(piece, len(piece))
                continue
            between = piece in markers.breaks
            if piece == markers.body:
                thinks = decode(name or []).split()[:1] == [markers.thinking]
                split.phase = "thinking" if thinks else "answer"
                split.add("\n", 0)
            elif piece == markers.name and split.phase == "before":
                split.phase = "thinking"  # No text yet, but no answer either.
            name = [] if piece == markers.name else None
    return split


def split_at_spelled(
    token_ids: list[int], turn: Turn, markers: SpelledPairs, decode: Decode
) -> Split:
    """Look for markers in the text, where the tokenizer has no tokens for them.

    A start marker opens the thinking only at the beginning: further on the model may be
    writing about markers. The letters of markers are counted with the thinking.
    """
    text, open_end, begin = decode(token_ids), _end_of_open(turn, markers, decode), 0
    first = text.lstrip()
    for start, end in markers.pairs:
        if first.startswith(start) and open_end in ("", end):
            open_end, begin = end, len(text) - len(first) + len(start)
    ends = [open_end] if open_end else [end for _, end in markers.pairs]
    sought = ends if open_end else [] if turn.known else [*sum(markers.pairs, ())]
    found = [(text.find(one, begin), one) for one in sought if one in text[begin:]]
    place, marker = min(found, default=(0, ""))
    split = Split("answer" if turn.known else "before")
    if open_end or marker in ends:
        split.phase, split.markers_in_text = "thinking", True
    if marker not in ends:  # None, or a start marker in the middle of the text.
        split.add(text[begin:], len(token_ids))
        return split
    answer_at = place + len(marker)
    # The tokens that it takes to write all text before the answer.
    count = bisect_left(
        range(len(token_ids)),
        True,
        key=lambda n: decode(token_ids[:n])[:answer_at] == text[:answer_at],
    )
    split.add(text[begin:place], count)
    split.phase = "answer"
    split.add(text[answer_at:], len(token_ids) - count)
    return split


def _pieces(token_ids: list[int], marker_ids: Container[int]) -> Iterator[Run | int]:
    """Yield each marker, and the run of other tokens between two of them."""
    begin = 0
    for place, token_id in enumerate(token_ids):
        if token_id in marker_ids:
            if begin < place:
                yield token_ids[begin:place]
            yield token_id
            begin = place + 1
    if begin < len(token_ids):
        yield token_ids[begin:]


def _end_of_open(turn: Turn, markers: SpelledPairs, decode: Decode) -> str:
    """The end marker of the thinking that the prompt leaves open; "" for none."""
    text = decode(turn.token_ids).rstrip()
    if turn.whole:  # The text of a base model: only its very end can open thinking.
        text = next((start for start, _ in markers.pairs if text.endswith(start)), "")
    place, end = max((text.rfind(start), end) for start, end in markers.pairs)
    return end if place > text.rfind(end) else ""


SPLITS = {
    Pairs: split_at_pairs,
    Channels: split_at_channels,
    SpelledPairs: split_at_spelled,
}
