"""Token ids in any container, as a list of numbers."""

from collections.abc import Mapping, Set
from operator import index
from typing import Any


def as_token_ids(token_ids: Any) -> list[int]:
    """Make a list of token ids from an array, a tensor or a tokenizer's result.

    Raises TypeError for anything else and ValueError for negative numbers.
    """
    if is_encoding := isinstance(token_ids, Mapping):
        token_ids = token_ids.get("input_ids")
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    match token_ids:
        case [list(row)] if is_encoding:  # A tokenizer's batch of one text.
            token_ids = row
    try:
        # Python takes bytes for numbers, and a set has no order.
        unfit = isinstance(token_ids, bytes | bytearray | Set)
        ids = list(map(index, None if unfit else token_ids))
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
