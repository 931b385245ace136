"""A small tokenizer of mistral-common: its own file format, one token for each byte."""

import base64
import itertools
import json
from pathlib import Path

SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"),
    *("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", "[AUDIO]"),
    *("[BEGIN_AUDIO]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
]


def write_tekken(folder: Path) -> None:
    """Write tekken.json, with as many tokens as tiny-thinker has and some more."""
    letters = range(ord("a"), ord("z") + 1)
    words = [bytes([i]) for i in range(256)]
    words += [bytes(word) for word in itertools.product(letters, letters, b"ab")]
    (folder / "tekken.json").write_text(
        json.dumps(
            {
                "config": {
                    "pattern": r"\p{L}+|\p{N}|[^\p{L}\p{N}]+",
                    "num_vocab_tokens": len(words),
                    "default_vocab_size": len(words) + len(SPECIAL),
                    "default_num_special_tokens": len(SPECIAL),
                    "version": "v13",
                },
                "vocab": [
                    {
                        "rank": rank,
                        "token_bytes": base64.b64encode(word).decode(),
                        "token_str": None,
                    }
                    for rank, word in enumerate(words)
                ],
                "special_tokens": [
                    {"rank": rank, "token_str": text, "is_control": True}
                    for rank, text in enumerate(SPECIAL)
                ],
            }
        )
    )
