"""How chats become tokens, with real tokenizers and no engine."""

from pathlib import Path

import pytest
from tekken import write_tekken

from helpers.internals.batch.prompts import BadPrompt, ChatFormat
from helpers.models import TINY_THINKER_DIRECTORY

QUESTION = [{"role": "user", "content": "What is 7 + 5?"}]


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def mistral(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The two tokenizers that wrap mistral-common's, which has no chat template."""
    folder: Path = tmp_path_factory.mktemp("tekken")
    write_tekken(folder)
    if request.param == "vllm":
        from vllm.tokenizers.mistral import MistralTokenizer as Tokenizer
    else:
        from transformers.tokenization_mistral_common import (
            MistralCommonBackend as Tokenizer,
        )
    return Tokenizer.from_pretrained(str(folder))


def text_of(tokenizer, prompt) -> str:
    chat = ChatFormat(tokenizer)
    tokens = chat.render(chat.messages(prompt), {})
    return tokenizer.decode(tokens).replace(" ", "")


def test_mistrals_tokenizers_write_chats_themselves(mistral) -> None:
    asked = "<s>[INST]Whatis7+5?[/INST]"
    assert text_of(mistral, "What is 7 + 5?") == asked
    begun = [*QUESTION, {"role": "assistant", "content": "The answer"}]
    assert text_of(mistral, begun) == f"{asked}Theanswer"


def test_half_a_character_is_refused_whoever_writes_the_chat(mistral) -> None:
    with pytest.raises(BadPrompt, match="half of a character"):
        text_of(mistral, "hello \ud83d")


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY))


def test_arguments_of_a_tools_call_are_read_from_their_json(chat: ChatFormat) -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 7}'}}
    (_, message) = chat.messages(
        [*QUESTION, {"role": "assistant", "tool_calls": [call]}]
    )
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 7}
    call["function"]["arguments"] = "{"
    with pytest.raises(BadPrompt, match="no JSON"):
        chat.messages([*QUESTION, {"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": ["text"], "text": "x"}]},
        {"role": "assistant", "tool_calls": 5},
        {"role": "assistant", "tool_calls": True},
    ],
)
def test_a_message_of_an_odd_shape_is_that_prompts_error(
    chat: ChatFormat, message: dict
) -> None:
    with pytest.raises(BadPrompt):
        chat.messages([*QUESTION, message])


def test_the_callers_messages_stay_as_they_were(chat: ChatFormat) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert chat.render(chat.messages(parts), {}).startswith("<|im_start|>user\nhello")
    assert isinstance(parts[0]["content"], list)
