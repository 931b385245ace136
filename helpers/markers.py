"""How models mark their thinking, and which of that a tokenizer has."""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

# One line for each family: what opens the thinking, and what closes it.
THINK_MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM, Kimi K2, tiny-thinker
    ("[THINK]", "[/THINK]"),  # Mistral's reasoning models
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere's Command
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<mm:think>", "</mm:think>"),  # MiniMax M3
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),  # PLaMo 3
    ("<ifm|think>", "</ifm|think>"),  # K2 Horizon, by its reasoning effort
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
)
# The first line of a thinking that is no thinking, by the marker before it.
LABELS = {"<|channel>": "thought"}
# Tokens that wrap an answer and are no part of it: Cohere's and ERNIE's.
WRAPPERS = (
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    *("<response>", "</response>"),
)


class Channels(NamedTuple):
    """Messages that name their channel: what stands before the name, and after it.

    A message whose channel is `thinking` is thinking. After one of `breaks` comes no
    text until the next message begins.
    """

    name: str
    body: str
    breaks: tuple[str, ...]
    thinking: str


CHANNELS = (
    # gpt-oss ("harmony"): <|channel|>analysis<|message|>...<|end|>
    Channels(
        "<|channel|>",
        "<|message|>",
        ("<|start|>", "<|end|>", "<|return|>", "<|call|>"),
        "analysis",
    ),
    # Kimi K3: <|open|>think<|sep|>...<|close|>think<|sep|>
    Channels("<|open|>", "<|sep|>", ("<|close|>",), "think"),
)

# The source of these lists: the parsers in vllm/reasoning and vllm/parser of vLLM 0.32.


class PairTokens(NamedTuple):
    """The tokens of the pairs that a tokenizer has."""

    ends: dict[int, int]  # The end marker of each start marker.
    texts: dict[int, str]
    label: str
    wrappers: frozenset[int]


class ChannelTokens(NamedTuple):
    """The tokens of one of `CHANNELS`."""

    name: int
    body: int
    breaks: frozenset[int]
    thinking: str


class SpelledPairs(NamedTuple):
    """Pairs that have no tokens here: a model can only spell them in letters."""

    pairs: tuple[tuple[str, str], ...]


Markers = PairTokens | ChannelTokens | SpelledPairs


def unwrap_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, out of a processor or of vLLM's wrapper of Mistral's."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):  # Multimodal: a processor.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return getattr(tokenizer, "transformers_tokenizer", tokenizer)


def added_tokens(tokenizer: Any) -> dict[int, tuple[str, bool]]:
    """Text of each token that is no part of words, and whether decoding can skip it."""
    added = tokenizer.added_tokens_decoder
    if isinstance(added, Mapping):
        return {i: (token.content, token.special) for i, token in added.items()}
    ids = tokenizer.all_special_ids  # Mistral's tokenizer has special tokens only.
    texts = tokenizer.convert_ids_to_tokens(ids)
    return {i: (text, True) for i, text in zip(ids, texts, strict=True)}


def find_markers(tokenizer: Any, own: tuple[str, str] | None = None) -> Markers:
    """What the tokenizer's vocabulary has of the known families, or of the `own` pair.

    Warns, once for each such vocabulary, of tokens that look like markers where none
    is known. Raises ValueError if `own` is not a pair of two different texts.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    # Not convert_tokens_to_ids: an unknown token gives the id of another one there.
    look_up = tokenizer.get_vocab().get if core is None else core.token_to_id

    for family in CHANNELS if own is None else ():
        name, body = look_up(family.name), look_up(family.body)
        if None not in (name, body):
            breaks = frozenset(map(look_up, family.breaks)) - {None}
            return ChannelTokens(name, body, breaks, family.thinking)

    pairs = THINK_MARKERS if own is None else (_checked(own),)
    ends, texts, label = {}, {}, ""
    for start, end in pairs:
        start_id, end_id = look_up(start), look_up(end)
        if start_id is not None and end_id is not None:
            ends[start_id] = end_id
            texts |= {start_id: start, end_id: end}
            label = label or LABELS.get(start, "")
    if ends:
        wrappers = frozenset(map(look_up, WRAPPERS)) - {None}
        return PairTokens(ends, texts, label, wrappers)
    if own is None:
        _warn_of_unknown(tokenizer)
    return SpelledPairs(pairs)


def _checked(own: Any) -> tuple[str, str]:
    texts = tuple(own) if isinstance(own, Sequence) and len(own) == 2 else ()
    if isinstance(own, str) or len({t for t in texts if t and isinstance(t, str)}) != 2:
        raise ValueError(
            f"markers={own!r}: give the text that opens the thinking and the one that "
            'closes it, such as ("<think>", "</think>")'
        )
    return texts


def _warn_of_unknown(tokenizer: Any) -> None:
    texts = (text for text, _ in added_tokens(tokenizer).values())
    found = sorted(t for t in texts if re.search("think|thought|reason", t, re.I))
    if found:
        warn_once(
            f"this tokenizer has {', '.join(found[:6])}, which look like markers of "
            "thinking but are not known here: all text counts as the answer. Pass "
            "markers=(start, end) with those that this model uses."
        )


@cache
def warn_once(message: str) -> None:
    """Warn, but not again with the same message in this process."""
    warnings.warn(message, stacklevel=4)
