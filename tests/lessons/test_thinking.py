"""Thinking and answer are told apart by token, whole and bit by bit."""

import copy
import pickle
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tekken import SPECIAL, write_tekken
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_mistral_common import MistralCommonBackend

from helpers.internals.thinking.families import (
    CHANNELS,
    THINK_MARKERS,
    WRAPPERS,
    _warn_once,
)
from helpers.thinking import (
    INCOMPLETE_HINT,
    THINK_END_TOKEN_ID,
    ThinkingParser,
    ThinkingResult,
    ThinkingStream,
    parse_thinking_response,
    parse_thinking_responses,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)
OPENS = CHATML + "<think>\n{% endif %}"
OPENS_NOT = CHATML + "{% endif %}"
MISTRAL = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"


def byte_level(
    special: list[str], text: list[str], template: str | None, first_id: int = 0
) -> PreTrainedTokenizerFast:
    """One token for each byte, so that every character above ASCII takes several."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for i in range(len(vocab), first_id):
        vocab[f"unused {i}"] = i
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    core.add_tokens(text)  # Not special, as Qwen's <think>: decoding keeps them.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=special[0],
        clean_up_tokenization_spaces=True,  # Llama's setting, which must not matter.
    )
    tokenizer.chat_template = template
    return tokenizer


def with_template(tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def sentencepiece() -> PreTrainedTokenizerFast:
    """A decoder that drops a text's first space and spells unknown characters."""
    words = ["<unk>", "▁", "▁a", "b", "▁<", *(f"<0x{i:02X}>" for i in range(256))]
    core = Tokenizer(
        models.BPE(
            {w: i for i, w in enumerate(words)}, [], byte_fallback=True, fuse_unk=True
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.add_special_tokens(["</s>"])
    core.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>"
    )


def mistral_common() -> MistralCommonBackend:
    with tempfile.TemporaryDirectory() as folder:
        write_tekken(Path(folder))
        return MistralCommonBackend.from_pretrained(folder)


QWEN_TOKENS = ["<|im_end|>", "<|im_start|>"], ["<think>", "</think>"]
QWEN3 = byte_level(*QWEN_TOKENS, OPENS, first_id=151665)
HYBRID = byte_level(*QWEN_TOKENS, OPENS_NOT)
NO_TEMPLATE = byte_level(*QWEN_TOKENS, None)
MINISTRAL = byte_level(
    ["</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"],
    [],
    MISTRAL,
)
LLAMA = byte_level(["<|eot_id|>"], [], OPENS_NOT)
R1_DISTILL = byte_level(
    ["<｜end▁of▁sentence｜>"],
    ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "\n\n"],
    "{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}<｜Assistant｜>",
)
GEMMA4 = byte_level(["<turn|>", "<|turn>"], ["<|channel>", "<channel|>"], OPENS_NOT)
COHERE = byte_level(
    ["<|END_OF_TURN_TOKEN|>"],
    [
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ],
    OPENS_NOT,
)
HARMONY = byte_level(
    ["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"],
    [],
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
)
KIMI_K3 = byte_level(
    ["<|im_end|>", "<|open|>", "<|close|>", "<|sep|>"],
    [],
    "{% for m in messages %}<|open|>message<|sep|>{{ m.content }}<|close|>message"
    "<|sep|>{% endfor %}<|open|>message<|sep|><|open|>think<|sep|>",
)
TOKENIZERS = {
    "qwen3": QWEN3,
    "hybrid": HYBRID,
    "no template": NO_TEMPLATE,
    "ministral": MINISTRAL,
    "llama": LLAMA,
    "gemma4": GEMMA4,
    "cohere": COHERE,
    "harmony": HARMONY,
    "mistral-common": mistral_common(),
    "sentencepiece": sentencepiece(),
}


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def everything(result: ThinkingResult) -> tuple:
    counts = result.thinking_tokens, result.response_tokens
    return *result, *counts, result.truncated, result.markers_in_text


@pytest.fixture(autouse=True)
def warn_again():
    _warn_once.cache_clear()


def test_qwen3_ids_are_the_known_ones():
    assert QWEN3.convert_tokens_to_ids("<think>") == 151667
    assert QWEN3.convert_tokens_to_ids("</think>") == THINK_END_TOKEN_ID == 151668
    assert ("[THINK]", "[/THINK]") in THINK_MARKERS


# The template opens the thinking, so the completion begins inside it.
OPENED = {
    "usual": ("\na\n</think>\n\nb<|im_end|>", "a", "b"),
    "unfinished": ("a", "a", None),
    "ended inside": ("a<|im_end|>", "a", None),
    "own start marker": ("<think>a</think>b", "a", "b"),
    "own start marker after space": (" \n<think>\na</think>b", "a", "b"),
    "start marker in the thinking": ("a<think>b</think>c", "a<think>b", "c"),
    "two start markers": ("<think>a<think>b</think>c", "a<think>b", "c"),
    "second end marker": ("a</think>b</think>c", "a", "b</think>c"),
    "both markers in the answer": (
        "a</think>b<think>c</think>d",
        "a",
        "b<think>c</think>d",
    ),
    "empty thinking": ("</think>b", "", "b"),
    "blank thinking": ("\n\n</think>b", "", "b"),
    "end marker last": ("a</think>", "a", ""),
    "end marker alone": ("</think>", "", ""),
    "start marker alone": ("<think>", "", None),
    "nothing": ("", "", None),
    "end of turn alone": ("<|im_end|>", "", None),
    "not ASCII": ("naïve 思考 🤔</think>réponse ✓", "naïve 思考 🤔", "réponse ✓"),
    "spaces before stops": ("a .</think>b , c .", "a .", "b , c ."),
}
# Nothing is opened: the completion does that itself, or never does.
NOT_OPENED = {
    "usual": ("<think>a</think>b", "a", "b"),
    "none": ("b", "", "b"),
    "unfinished": ("<think>a", "a", None),
    "text before": ("pre <think>a</think>b", "a", "pre b"),
    "text before, unfinished": ("pre <think>a", "a", None),
    "nothing": ("", "", ""),
    "empty thinking": ("<think></think>b", "", "b"),
    "second end marker": ("<think>a</think>b</think>c", "a", "b</think>c"),
    "second thinking": ("<think>a</think>b<think>c", "a", "b<think>c"),
    # Only a prompt that nobody showed us can have opened it.
    "lone end marker": ("a</think>b", "a", "b"),
}


@pytest.mark.parametrize("case", OPENED)
def test_thinking_opened_by_the_template(case):
    text, *expected = OPENED[case]
    assert list(parse_thinking_response(ids(QWEN3, text), QWEN3)) == expected


@pytest.mark.parametrize("tokenizer", ["hybrid", "no template", "ministral"])
@pytest.mark.parametrize("case", NOT_OPENED)
def test_thinking_opened_by_the_completion(case, tokenizer):
    def spelled(text):
        if tokenizer != "ministral" or text is None:
            return text
        return text.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")

    text, *expected = map(spelled, NOT_OPENED[case])
    tokenizer = TOKENIZERS[tokenizer]
    assert list(parse_thinking_response(ids(tokenizer, text), tokenizer)) == expected


def test_a_marker_spelled_in_letters_is_text():
    end = QWEN3.convert_tokens_to_ids("</think>")
    letters = [i for c in "</think>" for i in ids(QWEN3, c)]
    assert end not in letters
    completion = [*letters, end, *letters]
    result = parse_thinking_response(completion, QWEN3)
    assert tuple(result) == ("</think>", "</think>")
    assert (result.thinking_tokens, result.response_tokens) == (8, 8)


@pytest.mark.parametrize(("start", "end"), THINK_MARKERS)
def test_the_markers_of_each_family_are_found(start, end):
    tokenizer = byte_level(["<|im_end|>"], [start, end], OPENS_NOT)
    result = parse_thinking_response(ids(tokenizer, f"{start}a{end}b"), tokenizer)
    assert everything(result) == ("a", "b", 1, 1, False, False)
    cut = parse_thinking_response(ids(tokenizer, f"{start}a"), tokenizer)
    assert tuple(cut) == ("a", None)


def test_a_thinking_is_closed_by_the_end_marker_of_its_own_pair():
    tokenizer = byte_level(
        ["</s>"], [m for pair in THINK_MARKERS[-2:] for m in pair], None
    )
    (fast, end_fast), (faster, _) = THINK_MARKERS[-2:]
    text = f"a{end_fast}b"
    completion = ids(tokenizer, f"{faster}{text}{fast}")
    assert tuple(parse_thinking_response(completion, tokenizer)) == (text + fast, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|channel>thought\na<channel|>b", ("a", "b")),
        ("<|channel>thought\na", ("a", None)),
        ("<|channel>thought", ("", None)),
        ("<|channel>though", ("though", None)),
        ("<|channel>thoughts\na<channel|>b", ("thoughts\na", "b")),
        ("<|channel>thought\n<channel|>thought\nb", ("", "thought\nb")),
        ("thought\na<channel|>b", ("a", "b")),  # The prompt had the start marker.
        ("thought\nb", ("", "thought\nb")),
    ],
)
def test_gemmas_label_is_no_thinking(text, expected):
    assert tuple(parse_thinking_response(ids(GEMMA4, text), GEMMA4)) == expected


def test_what_wraps_coheres_answer_is_no_part_of_it():
    text = "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>"
    result = parse_thinking_response(ids(COHERE, text), COHERE)
    assert everything(result) == ("a", "b", 1, 3, False, False)


ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = " to=functions.f json<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("text", "thinking", "response"),
    [
        (f"{ANALYSIS}a<|end|>{FINAL}b<|return|>", "a", "b"),
        (f"{ANALYSIS}a<|end|>{FINAL}", "a", ""),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>fin", "a", None),
        (f"{ANALYSIS}a<|end|>", "a", None),
        (f"{ANALYSIS}a", "a", None),
        ("<|channel|>anal", "", None),
        (
            f"{ANALYSIS}a<|end|><|start|>assistant{ANALYSIS}c<|end|>{FINAL}b",
            "a\nc",
            "b",
        ),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary{CALL}", "a", "{}"),
        ("<|channel|>final<|message|>b<|return|>", "", "b"),
        ("b", "", "b"),
        ("", "", ""),
    ],
)
def test_harmony_is_split_by_its_channels(text, thinking, response):
    result = parse_thinking_response(ids(HARMONY, text), HARMONY)
    assert tuple(result) == (thinking, response)
    letters = len((thinking + (response or "")).replace("\n", ""))
    assert result.thinking_tokens + result.response_tokens == letters


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("<|start|>assistant", f"{ANALYSIS}a<|end|>{FINAL}b", ("a", "b")),
        (f"<|start|>assistant{ANALYSIS}", "a", ("a", None)),
        (f"<|start|>assistant{ANALYSIS}Well,", f"a<|end|>{FINAL}b", ("a", "b")),
        ("<|start|>assistant<|channel|>", "analysis<|message|>a", ("a", None)),
        (f"<|start|>user<|message|>{ANALYSIS}?<|end|>{FINAL}", "b", ("", "b")),
    ],
)
def test_a_prompt_may_begin_a_message_of_harmony(prompt, completion, expected):
    result = parse_thinking_response(
        ids(HARMONY, completion), HARMONY, prompt_token_ids=ids(HARMONY, prompt)
    )
    assert tuple(result) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("What does </think> do?<｜Assistant｜>", "<think>a</think>b", ("a", "b")),
        ("What does </think> do?<｜Assistant｜><think>", "a", ("a", None)),
        ("What does <think> do?<｜Assistant｜>", "b", ("", "b")),
        ("Hi<｜Assistant｜><think>First,\n\n", "a</think>b", ("a", "b")),
    ],
)
def test_the_last_turn_decides_though_no_special_token_begins_it(
    prompt, completion, expected
):
    refusing = "{{ raise_exception('no tools') }}" + R1_DISTILL.chat_template
    for template in (R1_DISTILL.chat_template, None, refusing):
        tokenizer = with_template(R1_DISTILL, template)
        result = parse_thinking_response(
            ids(tokenizer, completion),
            tokenizer,
            prompt_token_ids=ids(tokenizer, f"<｜User｜>{prompt}"),
        )
        assert tuple(result) == expected


@pytest.mark.parametrize("template", ["{{ raise_exception('no tools') }}", "{% if %}"])
def test_a_template_that_refuses_a_plain_question_tells_nothing(template):
    tokenizer = with_template(QWEN3, template)
    for text, expected in {"a</think>b": ("a", "b"), "b": ("", "b")}.items():
        assert (
            tuple(parse_thinking_response(ids(tokenizer, text), tokenizer)) == expected
        )


UNKNOWN = byte_level(["</s>"], ["<reasoning>", "</reasoning>"], OPENS_NOT)


def test_tokens_that_look_like_markers_are_named_once():
    completion = ids(UNKNOWN, "<reasoning>a</reasoning>b")
    with pytest.warns(UserWarning, match="has <reasoning>.*markers=") as seen:
        for _ in range(2):
            thinking, _ = parse_thinking_response(completion, UNKNOWN)
    assert len(seen) == 1 and thinking == ""


APERTUS = byte_level(["</s>", "<|inner_prefix|>", "<|inner_suffix|>"], [], OPENS_NOT)


@pytest.mark.parametrize(
    ("tokenizer", "text", "named"),
    [
        (LLAMA, "<reasoning>a</reasoning>b", "<reasoning>"),
        (LLAMA, "\n<thinking>a", "<thinking>"),
        (QWEN3, "a</think>\n<answer>b</answer>", "<answer>"),
        (HYBRID, "<|begin_of_thought|>a", "<|begin_of_thought|>"),
        (HYBRID, "[THINK]a[/THINK]b", "[THINK]"),
        (APERTUS, "<|inner_prefix|>a<|inner_suffix|>b", "<|inner_prefix|>"),
    ],
)
def test_a_marker_that_cuts_nothing_is_named(tokenizer, text, named):
    with pytest.warns(UserWarning, match=re.escape(f"has {named}, which cuts nothing")):
        parse_thinking_response(ids(tokenizer, text), tokenizer)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text", ["<html>b</html>", "<div>", "[1] b", "<think about", ""]
)
def test_other_tags_are_no_markers(text):
    prompt = ids(HYBRID, "Hi<|im_end|>")
    assert (
        parse_thinking_response(
            ids(HYBRID, text), HYBRID, prompt_token_ids=prompt
        ).response
        == text
    )


@pytest.mark.parametrize("reason", [None, "stop", "length", "tool_calls"])
@pytest.mark.parametrize("prompt", [None, "Hi<|eot_id|>"])
def test_a_model_that_does_not_think_is_complete_whatever_ended_it(prompt, reason):
    closes = with_template(QWEN3, OPENS.replace("<think>", "<think></think>"))
    for tokenizer in (LLAMA, HYBRID, closes, HARMONY):
        known = prompt and ids(tokenizer, prompt)
        result = parse_thinking_response(
            ids(tokenizer, "b"), tokenizer, prompt_token_ids=known, finish_reason=reason
        )
        assert (*result, result.complete, result.hint) == ("", "b", True, "")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tokenizer", "markers", "text", "found"),
    [
        (UNKNOWN, ("<reasoning>", "</reasoning>"), "<reasoning>a</reasoning>b", False),
        (LLAMA, ["Thought:", "Answer:"], "Thought: a\nAnswer: b", True),
        (LLAMA, ("Thought:", "Answer:"), "a\nAnswer: b", True),
        (QWEN3, ("Thought:", "Answer:"), "Thought: a\nAnswer: b", True),
        (LLAMA, ("##", "###"), "## a ### b", True),
    ],
)
def test_markers_of_ones_own(tokenizer, markers, text, found):
    completion = ids(tokenizer, text)
    result = parse_thinking_response(completion, tokenizer, markers=markers)
    assert (*result, result.markers_in_text) == ("a", "b", found)
    assert parse_thinking_responses([completion], tokenizer, markers=markers) == [
        result
    ]


@pytest.mark.parametrize("wrong", ["ab", ("a",), ("a", "a"), ("", "a"), (1, 2), 3])
def test_markers_that_are_no_pair_are_refused(wrong):
    with pytest.raises(ValueError, match="markers=.*closes it"):
        parse_thinking_response([], QWEN3, markers=wrong)


# A model without the tokens spells its markers in letters.
SPELLED = {
    "usual": ("<think>a</think>b", "a", "b", 16),
    "after space": (" \n<think>\na\n</think>\n\nb", "a", "b", 20),
    "cut off": ("<think>a", "a", None, 8),
    "cut off in the end marker": ("<think>a</thi", "a</thi", None, 13),
    "cut off in the start marker": ("<thi", "", "<thi", 0),
    "second end marker": ("<think>a</think>b</think>c", "a", "b</think>c", 16),
    "not ASCII": ("◁think▷é🤔◁/think▷✓", "é🤔", "✓", 11 + 6 + 12),
    "other family": ("[THINK]a[/THINK]b", "a", "b", 16),
    "lone end marker": ("a</think>b", "a", "b", 9),
    "none": ("b", "", "b", 0),
    "nothing": ("", "", "", 0),
}


@pytest.mark.parametrize("case", SPELLED)
def test_markers_spelled_in_letters_are_found_where_there_are_no_tokens(case):
    text, *expected, thinking_tokens = SPELLED[case]
    completion = ids(LLAMA, text)
    result = parse_thinking_response(completion, LLAMA)
    assert list(result) == expected
    counts = (thinking_tokens, len(completion) - thinking_tokens)
    assert (result.thinking_tokens, result.response_tokens) == counts
    assert result.markers_in_text == (thinking_tokens > 0)
    assert ("markers_in_text" in repr(result)) == result.markers_in_text


@pytest.mark.parametrize(
    ("prompt", "completion", "expected", "found"),
    [
        ("hi<|eot_id|><think>\n", "a</think>b", ("a", "b"), True),
        ("hi<|eot_id|><think>\n", "<think>a</think>b", ("a", "b"), True),
        ("hi<|eot_id|><think>\n", "a", ("a", None), True),
        ("hi<|eot_id|><think>\nFirst,", "a</think>b", ("a", "b"), True),
        ("hi<|eot_id|><think>\n\n</think>\n\n", "b", ("", "b"), False),
        ("What is <think>?<|eot_id|>", "b", ("", "b"), False),
        ("What is <think>?", "b", ("", "b"), False),  # A base model: no turns.
        ("Think:<think>", "b", ("b", None), True),
        ("", "b", ("", "b"), False),
    ],
)
def test_the_prompt_may_have_spelled_the_start_marker(
    prompt, completion, expected, found
):
    result = parse_thinking_response(
        ids(LLAMA, completion), LLAMA, prompt_token_ids=ids(LLAMA, prompt)
    )
    assert tuple(result) == expected
    assert result.markers_in_text == found


@pytest.mark.parametrize(
    ("text", "prompt"),
    [("Sure. <think>a</think>b", None), ("a</think>b", ids(LLAMA, "hi<|eot_id|>"))],
)
def test_markers_in_an_answer_are_text_and_a_warning_says_so(text, prompt):
    with pytest.warns(UserWarning, match="which cuts nothing"):
        result = parse_thinking_response(
            ids(LLAMA, text), LLAMA, prompt_token_ids=prompt
        )
    assert tuple(result) == ("", text)


TURN = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (f"hi{TURN}<think>\n", "a</think>b", ("a", "b")),
        (f"hi{TURN}<think>\nFirst,", "a</think>b", ("a", "b")),
        (f"hi{TURN}<think>\n", "a", ("a", None)),
        (f"hi{TURN}", "b", ("", "b")),
        (f"hi{TURN}", "<think>a</think>b", ("a", "b")),
        (f"hi{TURN}", "a</think>b", ("", "a</think>b")),
        # Closed at once, as with enable_thinking=False: all of it is the answer.
        (f"hi{TURN}<think>\n\n</think>\n\n", "b", ("", "b")),
        (f"hi{TURN}<think>\n\n</think>\n\n", "a<think>b", ("", "a<think>b")),
        # What an earlier turn says of markers does not count.
        (f"What is <think>?{TURN}", "b", ("", "b")),
        (f"What is </think>?{TURN}<think>", "a", ("a", None)),
        (f"What is </think>?{TURN}", "<think>a</think>b", ("a", "b")),
        ("", "b", ("", "b")),
    ],
)
@pytest.mark.parametrize("tokenizer", [QWEN3, HYBRID], ids=["qwen3", "hybrid"])
def test_the_prompt_says_more_than_the_template(
    tokenizer, prompt, completion, expected
):
    completion = ids(tokenizer, completion)
    prompt = ids(tokenizer, prompt)
    result = parse_thinking_response(completion, tokenizer, prompt_token_ids=prompt)
    assert tuple(result) == expected
    stream = ThinkingStream(tokenizer, prompt_token_ids=prompt)
    stream.feed(completion)
    assert stream.result() == result


def test_mistral_commons_tokenizer_is_split_at_its_think_tokens():
    tokenizer = TOKENIZERS["mistral-common"]
    start, end = map(SPECIAL.index, ("[THINK]", "[/THINK]"))
    completion = [start, *ids(tokenizer, "é"), end, *ids(tokenizer, "[THINK]b"), 2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does [/THINK] do?"}], return_dict=False
    )
    for known in (None, prompt):
        result = parse_thinking_response(
            completion, tokenizer, prompt_token_ids=known, finish_reason="stop"
        )
        assert everything(result) == ("é", "[THINK]b", 2, 9, False, False)
    cut = parse_thinking_response(completion[:3], tokenizer)
    assert tuple(cut) == ("é", None)
    with pytest.raises(ValueError, match="tokenizer of the model"):
        parse_thinking_response([len(tokenizer)], tokenizer)


def test_a_space_beside_a_marker_in_the_answer_stays():
    tokenizer = TOKENIZERS["sentencepiece"]
    words = ["<think>", "</think>", "b", "<think>", "▁a"]
    result = parse_thinking_response(tokenizer.convert_tokens_to_ids(words), tokenizer)
    assert tuple(result) == ("", "b<think> a")


def test_markers_in_ministrals_system_prompt_open_nothing():
    prompt = ids(MINISTRAL, "Think so: [THINK]...[INST]hi[/INST]")
    result = parse_thinking_response(
        ids(MINISTRAL, "b"), MINISTRAL, prompt_token_ids=prompt
    )
    assert tuple(result) == ("", "b")


def test_counts_leave_out_the_marker_that_cuts():
    result = parse_thinking_response(ids(QWEN3, "abc</think>de<|im_end|>"), QWEN3)
    assert (result.thinking_tokens, result.response_tokens) == (3, 3)
    result = parse_thinking_response(ids(HYBRID, "abc</think>de"), HYBRID)
    assert (result.thinking_tokens, result.response_tokens) == (3, 2)


@pytest.mark.parametrize(
    ("text", "finish_reason", "complete", "truncated"),
    [
        ("a", None, False, True),
        ("a", "length", False, True),
        ("a<|im_end|>", "stop", False, False),
        ("a</think>b", None, True, False),
        ("a</think>b", "stop", True, False),
        ("a</think>b", "length", True, True),
        ("a</think>", "length", True, True),
    ],
)
def test_complete_and_truncated(text, finish_reason, complete, truncated):
    result = parse_thinking_response(
        ids(QWEN3, text), QWEN3, finish_reason=finish_reason
    )
    assert (result.complete, result.truncated) == (complete, truncated)
    assert (INCOMPLETE_HINT in repr(result)) == (truncated and not complete)


def test_the_result_is_a_pair_that_survives_pickling():
    result = parse_thinking_response(
        ids(QWEN3, "a</think>b"), QWEN3, finish_reason="length"
    )
    thinking, response = result
    assert (thinking, response) == ("a", "b") == (result[0], result[1])
    assert pickle.loads(pickle.dumps(result)) == result


class Processor:
    tokenizer = QWEN3


@pytest.mark.parametrize(
    "given",
    [
        tuple,
        iter,
        np.array,
        torch.tensor,
        lambda ids: np.array(ids, dtype=np.uint32),
        lambda ids: BatchEncoding({"input_ids": ids}),
        lambda ids: BatchEncoding({"input_ids": torch.tensor(ids)}),
    ],
)
def test_token_ids_may_come_in_any_container(given):
    prompt = ids(QWEN3, "Hi<|im_end|>")
    result = parse_thinking_response(
        given(ids(QWEN3, "a</think>b")), Processor(), prompt_token_ids=given(prompt)
    )
    assert tuple(result) == ("", "a</think>b")
    completion = given(ids(QWEN3, "<think>a</think>b"))
    many = parse_thinking_responses(
        (c for c in [completion]), Processor(), prompt_token_ids=(p for p in [prompt])
    )
    assert everything(many[0]) == ("a", "b", 1, 1, False, False)


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        ("a</think>b", TypeError, "one completion"),
        ([[1, 2]], TypeError, "one completion"),
        ([1.5], TypeError, "one completion"),
        (b"a</think>b", TypeError, "one completion"),
        ({1, 2}, TypeError, "one completion"),
        (np.array([[1, 2]]), TypeError, "one completion"),
        (np.array([1.0]), TypeError, "one completion"),
        (None, TypeError, "one completion"),
        (torch.tensor(1), TypeError, "one completion"),
        ({"prompt_token_ids": [1]}, TypeError, "one completion"),
        (BatchEncoding({"input_ids": [[1], [2]]}), TypeError, "one completion"),
        ([1, -100], ValueError, "-100 is no token id"),
        ([2**70], ValueError, "tokenizer of the model"),
    ],
)
def test_what_is_not_one_completion_is_refused(wrong, error, reason):
    with pytest.raises(error, match=reason):
        parse_thinking_response(wrong, QWEN3)
    if error is TypeError and wrong is not None:
        with pytest.raises(error, match=reason):
            parse_thinking_response([], QWEN3, prompt_token_ids=wrong)


@pytest.mark.parametrize(
    "wrong",
    ["Qwen/Qwen3-4B", None, [1], QWEN3.backend_tokenizer, torch.nn.Linear(1, 1)],
)
def test_what_is_no_tokenizer_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a tokenizer of transformers"):
        parse_thinking_response([1], wrong)


class Counting:
    """The real tokenizer, and a count of the calls and tokens that it decoded."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.calls = self.tokens = 0

    def __getattr__(self, name):
        if name == "tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def batch_decode(self, sequences, **options):
        self.calls += 1
        self.tokens += sum(map(len, sequences))
        return self._tokenizer.batch_decode(sequences, **options)


def test_many_completions_are_decoded_in_one_call():
    texts = [text for text, *_ in OPENED.values() if "\n<think>" not in text]
    counting = Counting(QWEN3)
    completions = [ids(QWEN3, text) for text in texts if not text.startswith("a<think")]
    results = parse_thinking_responses(completions, counting)
    assert [everything(r) for r in results] == [
        everything(parse_thinking_response(c, QWEN3)) for c in completions
    ]
    assert counting.calls == 1
    assert parse_thinking_responses([], QWEN3) == []
    with pytest.raises(ValueError):
        parse_thinking_responses(completions, QWEN3, prompt_token_ids=[[1]])


@pytest.mark.filterwarnings("ignore:a completion has")
@pytest.mark.parametrize("tokenizer", [QWEN3, HARMONY, LLAMA])
@pytest.mark.parametrize(
    "text", ["word ", "<think>a</think>b", "<|channel|>analysis<|message|>a<|end|>"]
)
def test_work_grows_with_the_tokens_and_hardly_faster(tokenizer, text):
    def work(count: int) -> int:
        counting = Counting(tokenizer)
        parse_thinking_response((ids(tokenizer, text) * count)[:count], counting)
        return counting.tokens

    assert work(8000) < 2.5 * work(4000)


def raw(tokenizer, data: bytes) -> list[int]:
    """The tokens of bytes that need not be text."""
    if tokenizer is TOKENIZERS["mistral-common"]:
        return [len(SPECIAL) + b for b in data]
    if tokenizer is TOKENIZERS["sentencepiece"]:
        return [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in data]
    alphabet = byte_alphabet()
    return [tokenizer.convert_tokens_to_ids(alphabet[b]) for b in data]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}


@cache
def known_markers(tokenizer) -> list[int]:
    """The markers and other tokens of interest that a tokenizer has."""
    names = [m for pair in THINK_MARKERS for m in pair]
    names += [*WRAPPERS, "<|im_end|>", "</s>", "▁a", "▁", "b"]
    for name, body, breaks, _ in CHANNELS:
        names += [name, body, *breaks]
    vocabulary = tokenizer.get_vocab()  # Slow for a large one.
    return [vocabulary[name] for name in names if name in vocabulary]


@st.composite
def completions(draw, tokenizer):
    """Tokens of text, torn characters, markers and special tokens, in any order."""
    spelled = st.sampled_from(
        ["<think>", "</think>", "<thi", "◁think▷", "◁/think▷", "thought\n", "analysis"]
    )
    known = known_markers(tokenizer)
    characters = st.sampled_from(["a", "\n", "é", "€", "思", "🤔", "\ufffd"])
    pieces = st.sampled_from([[i] for i in known] or [[0]])
    if tokenizer is TOKENIZERS["sentencepiece"]:
        # Byte fallback spoils a whole run of bytes for one bad one, and so takes back
        # text that was good: only whole characters between words are promised there.
        word = [tokenizer.convert_tokens_to_ids("▁a")]
        pieces |= characters.map(lambda c: raw(tokenizer, c.encode()) + word)
    else:
        pieces |= (characters | spelled | st.text(max_size=30)).map(
            lambda text: raw(tokenizer, text.encode())
        )
        pieces |= st.binary(min_size=1, max_size=3).map(lambda b: raw(tokenizer, b))
        pieces |= st.integers(10, 40).map(lambda n: raw(tokenizer, b"\x80" * n))
    return [i for piece in draw(st.lists(pieces, max_size=12)) for i in piece]


# Made once: looking up the markers takes longer than to parse with them.
PARSERS = {name: ThinkingParser(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def any_completion(test):
    """Run a test with random completions and prompts of every kind of tokenizer."""
    test = given(data=st.data())(test)
    slow = [HealthCheck.too_slow]
    test = settings(max_examples=60, deadline=None, suppress_health_check=slow)(test)
    test = pytest.mark.parametrize("name", TOKENIZERS)(test)
    return pytest.mark.filterwarnings("ignore:a completion has")(test)


@any_completion
def test_any_portions_give_what_parsing_at_once_gives(name, data):
    tokenizer = TOKENIZERS[name]
    completion = data.draw(completions(tokenizer))
    prompt = data.draw(st.none() | completions(tokenizer))
    cuts = data.draw(st.lists(st.integers(0, len(completion)), max_size=9).map(sorted))
    stream = ThinkingStream(TOKENIZERS[name], prompt_token_ids=prompt)
    for start, end in zip([0, *cuts], [*cuts, len(completion)], strict=True):
        stream.feed(completion[start:end])
        so_far = PARSERS[name].parse(completion[:end], prompt)
        assert stream.result() == so_far


@any_completion
def test_every_token_is_thinking_or_answer_or_a_marker(name, data):
    tokenizer = TOKENIZERS[name]
    completion = data.draw(completions(tokenizer))
    prompt = data.draw(st.none() | completions(tokenizer))
    result = PARSERS[name].parse(completion, prompt)
    counted = result.thinking_tokens + result.response_tokens
    if name == "harmony":  # Names of channels are in neither.
        assert counted <= len(completion)
    elif name == "llama":  # Spelled markers count as thinking.
        assert counted == len(completion)
    else:  # At most one marker opens the thinking, and one closes it.
        assert len(completion) - 2 <= counted <= len(completion)
    for text in result:
        assert text is None or text == text.strip()


@any_completion
def test_an_answer_that_has_begun_only_grows(name, data):
    tokenizer = TOKENIZERS[name]
    completion = data.draw(completions(tokenizer))
    prompt = data.draw(completions(tokenizer))
    if name == "harmony":
        return  # Its messages may come in any order.
    before = None
    for count in range(len(completion) + 1):
        result = PARSERS[name].parse(completion[:count], prompt)
        if before and before.complete and before.thinking:
            assert result.complete
            assert result.thinking == before.thinking
            # The last character may have been half written.
            assert result.response.startswith(before.response.rstrip("\ufffd"))
        before = result


@given(
    thinking=st.lists(st.integers(0, 255), max_size=20),
    answer=st.lists(st.integers(0, 255) | st.sampled_from([151667, 151668])),
)
def test_the_first_end_marker_cuts_and_all_after_it_is_the_answer(thinking, answer):
    result = parse_thinking_response([*thinking, 151668, *answer], QWEN3)

    def text(token_ids):
        runs = re.split("(151667|151668)", " ".join(map(str, token_ids)))
        texts = [QWEN3.decode([int(i) for i in run.split()]) for run in runs]
        return "".join(texts).strip()

    assert tuple(result) == (text(thinking), text(answer))


def test_a_stream_takes_an_array_for_its_prompt():
    stream = ThinkingStream(
        HYBRID, prompt_token_ids=np.array(ids(HYBRID, "Hi<|im_end|><think>"))
    )
    assert tuple(stream.result()) == ("", None)
    stream.feed(np.array(ids(HYBRID, "a")))
    stream.feed(iter(ids(HYBRID, "</think>b")))
    assert tuple(stream.result("stop")) == ("a", "b")
    assert stream.result("abort").finish_reason == "abort"


SAME = [
    "{s}a{e}b",
    "{s}a",
    "a",
    "",
    "{e}",
    "{s}",
    "{s}{e}b",
    "{s}\na\n{e}\n\nb\n",
    " \n{s}a{e}b",
    "{s}naïve 思考 🤔{e}réponse ✓",
    "{e}b",
    "{s}a{e}",
]
# Where vLLM's parser of that name says something else, and why we do not follow it.
DIFFERENT = {
    # A marker after the cut is the model's text; vLLM deletes it without a word.
    "{s}a{e}b{e}c": {
        "qwen3": (("a", "bc"), ("a", "b{e}c")),
        "mistral": (("a", "bc"), ("a", "b{e}c")),
    },
    # vLLM's mistral goes back to thinking in mid-answer: the answer loses a piece.
    "{s}a{e}b{s}c{e}d": {
        "qwen3": (("a", "b{s}cd"), ("a", "b{s}c{e}d")),
        "mistral": (("ac", "bd"), ("a", "b{s}c{e}d")),
    },
    # A start marker in mid-thinking is text too.
    "{s}a{s}b{e}c": {
        "qwen3": (("ab", "c"), ("a{s}b", "c")),
        "mistral": (("ab", "c"), ("a{s}b", "c")),
    },
    # A lone end marker says that the prompt opened the thinking; with the prompt's
    # tokens we need no guess, and the marker is text where nothing was opened.
    "a{e}b": {
        "qwen3": (("a", "b"), ("a", "b")),
        "mistral": ((None, "ab"), ("a", "b")),
    },
    # Text before the start marker: after an opened prompt it is thinking for both.
    "a{s}b{e}c": {
        "qwen3": (("ab", "c"), ("a{s}b", "c")),
        "mistral": (("b", "ac"), ("b", "ac")),
    },
}


def family(start: str, end: str, opens: bool = False) -> PreTrainedTokenizerFast:
    opened = OPENS.replace("<think>", start) if opens else OPENS_NOT
    return byte_level(["<|im_end|>", "<|im_start|>"], [start, end], opened)


# By the names of vLLM's parsers. Those that take all for thinking until it is closed
# belong to models whose template opens it.
COMPARED = {
    "qwen3": (QWEN3, "<think>", "</think>"),
    "mistral": (MINISTRAL, "[THINK]", "[/THINK]"),
    "gemma4": (GEMMA4, "<|channel>", "<channel|>"),
    "kimi_k3": (KIMI_K3, "<|open|>think<|sep|>", "<|close|>think<|sep|>"),
}
for parser, (start, end), opens in [
    ("seed_oss", THINK_MARKERS[3], True),
    ("minimax_m3", ("<mm:think>", "</mm:think>"), False),
    ("plamo3", ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"), True),
]:
    COMPARED[parser] = (family(start, end, opens), start, end)


@pytest.mark.parametrize("parser", COMPARED)
def test_agreement_with_vllms_parsers(parser):
    from vllm.reasoning import ReasoningParserManager

    tokenizer, start, end = COMPARED[parser]
    vllms = ReasoningParserManager.get_reasoning_parser(parser)(tokenizer)

    def spell(text):
        return text and text.format(s=start, e=end)

    def plain(pair):
        # vLLM strips nothing, and has None for what is empty as for what is missing.
        return tuple((text or "").strip() for text in pair)

    for text in [*SAME, *DIFFERENT]:
        theirs = vllms.extract_reasoning(spell(text), None)
        completion = ids(tokenizer, spell(text))
        ours = parse_thinking_response(completion, tokenizer)
        if text in SAME:
            assert plain(ours) == plain(theirs), text
        elif parser in DIFFERENT[text]:
            expected_theirs, expected_ours = DIFFERENT[text][parser]
            assert plain(theirs) == plain(map(spell, expected_theirs)), text
            assert plain(ours) == plain(map(spell, expected_ours)), text
