"""Decode a text while its tokens arrive."""

from collections.abc import Callable

_REPLACEMENT = "\ufffd"  # What decoding shows for bytes that are no whole character.
# A character has at most 4 bytes and a token at least one, so at least one of any four
# neighbouring token boundaries lies between characters. Counted from the end.
_PLACES = (4, 5, 6, 7)
_HELD = 16  # tokens held back at most, or bytes that form no text would cost n * n


class Detokenizer:
    """Decode a growing list of tokens: what it gave, put together, is the whole text.

    Text that ends in a replacement character is held back, for its missing bytes may be
    in the next token: of two tokens with the bytes of "é", C3 and A9, the first gives
    "" and the second "é". Exact whatever the bytes for byte-level tokenizers, as all
    supported models have; for SentencePiece's byte fallback where its characters are
    whole and stand between words, for one bad byte there spoils all bytes around it.

    `decode` turns several lists of token ids into as many texts.
    """

    def __init__(self, decode: Callable[[list[list[int]]], list[str]]) -> None:
        self._decode = decode
        # SentencePiece drops a text's first space, so tokens are decoded together with
        # some before them.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: list[int]) -> str:
        """Take the next tokens, and give the text that is sure by now."""
        return "".join(map(self._push, token_ids))

    def _push(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._text(self._pending)
        complete = text and not text.endswith(_REPLACEMENT)
        if complete or (not text and len(self._pending) > _HELD):
            return self._give(len(self._pending), text)
        if len(self._pending) > _HELD:
            for tail in _PLACES:
                head = self._text(self._pending[:-tail])
                [rest] = self._decode([self._pending[-tail:]])
                # If both parts together give the text, the cut is between characters.
                if head and rest and head + rest == text:
                    return self._give(len(self._pending) - tail, head)
        return ""

    def flush(self) -> str:
        """Give what was held back; the next token begins a text of its own."""
        text = self._text(self._pending)
        self._context, self._pending = [], []
        return text

    def _text(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        before, whole = self._decode([self._context, self._context + token_ids])
        return whole[len(before) :]

    def _give(self, count: int, text: str) -> str:
        given = self._pending[:count]
        del self._pending[:count]
        for tail in _PLACES:
            [tail_text] = self._decode([given[-tail:]])
            if tail_text and text.endswith(tail_text):  # It starts a character.
                self._context = given[-tail:]
                break
        return text
