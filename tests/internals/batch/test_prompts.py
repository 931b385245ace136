"""What a prompt is, in every shape that people have it in; no engine."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helpers.internals.batch.prompts import Prompt, check_formatted, to_prompt
from helpers.internals.engine.sampling_params import sampling_params
from helpers.models import MODELS

Q = "What is 7 + 5?"
CHAT = [{"role": "user", "content": Q}]


def chat_of(given: Any) -> list[dict]:
    prompt = to_prompt(0, given, {})
    assert prompt.refused == ""
    return prompt.messages


@pytest.mark.parametrize(
    "given",
    [
        Q,
        Q.encode(),
        CHAT,
        tuple(CHAT),
        np.array(CHAT, dtype=object),  # as pandas has a column of lists
        json.dumps(CHAT),
        str(CHAT),  # as pandas writes a column of lists to CSV
        {"messages": json.dumps(CHAT)},
        {"messages": str(CHAT)},
        {"prompt": Q},
        json.dumps({"prompt": Q}),
        json.dumps({"body": {"messages": CHAT}}),
        {"prompt": Q, "messages": None, "id": float("nan")},
        [*CHAT, {"role": "assistant", "content": ""}],
        {"custom_id": "a", "body": {"messages": CHAT}},
    ],
)
def test_every_shape_is_the_same_chat(given: Any) -> None:
    assert chat_of(given) == CHAT


def test_json_that_is_no_chat_is_a_question(
    recwarn: pytest.WarningsRecorder,
) -> None:
    texts = '["a", "b"]', '[{"a": 1}]', "[1] is what?", '{"role": "user"}'
    for text in (*texts, "['a']", "{'role': 1}", r"['\d' is 5]", "[" * 10**5):
        assert chat_of(text) == [{"role": "user", "content": text}]
    assert not recwarn


def test_parameters_may_be_json_text_or_any_mapping() -> None:
    row = {"prompt": Q, "sampling_params": '{"seed": 1}'}
    row["chat_template_kwargs"] = "{'enable_thinking': False}"  # pandas, to CSV
    prompt = to_prompt(0, row, {"enable_thinking": True, "a": 1})
    assert prompt.sampling_params == {"seed": 1}
    assert prompt.chat_template_kwargs == {"enable_thinking": False, "a": 1}
    advice = MODELS["tiny-thinker"].sampling  # can't be written to
    prompt = to_prompt(0, {"prompt": Q, "sampling_params": advice}, {})
    assert (prompt.refused, prompt.sampling_params) == ("", dict(advice))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *[(3, 3), ("3", "3"), (np.int64(3), 3), (np.uint8(3), 3), (3.0, 3)],
        *[(np.float64(3), 3), (float("nan"), None), (np.str_("a"), "a"), (None, None)],
        *[(pd.NA, None), ("", None), (pa.scalar(3), 3)],
    ],
)
def test_ids_are_texts_and_whole_numbers(key: Any, meant: Any) -> None:
    prompt = to_prompt(0, {"id": key, "prompt": Q}, {})
    assert (prompt.refused, prompt.id) == ("", meant)
    assert type(prompt.id) is type(meant)


@pytest.mark.parametrize("key", [{"no": 1}, 1.5, True, ["a"], 2**63])
def test_other_ids_are_refused(key: Any) -> None:
    prompt = to_prompt(0, {"id": key, "prompt": Q}, {})
    assert prompt.id is None and "an id is a text or a whole number" in prompt.refused


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "prompt is empty"),
        ([{"role": "assistant", "content": ""}], "prompt is empty"),
        (5, "of type int"),
        (object(), "a object can't be compared by value: use text"),
        (["hello"], "'hello'"),
        ([{"role": "user", "content": 5}], '"role" and "content"'),
        ([{"role": "user"}], '"role" and "content"'),
        ({"promt": "hello"}, "unknown key promt"),
        ({"prompt": Q, "messages": CHAT}, "either"),
        ("hello \ud83d", "surrogates not allowed"),
        ({"prompt": Q, "chat_template_kwargs": 5}, "are a dict"),
        (
            {"prompt": Q, "chat_template_kwargs": {"enable_thinking": 0}},
            "True or False",
        ),
        ([{"role": "user", "content": [{"type": "text", "content": Q}]}], '"text"'),
        ([{"role": "user", "content": [{"type": "text", "text": None}, Q]}], '"text"'),
        ([{"role": "assistant", "content": 5}], "a prompt is a text"),
        (str(np.array(CHAT * 2)), "pass the list itself"),
        (json.dumps(CHAT)[:-1], "pass the list itself"),
    ],
)
def test_what_is_no_prompt_says_why(given: Any, reason: str) -> None:
    assert reason in to_prompt(0, given, {}).refused


def test_a_tools_arguments_are_read_from_their_json() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}
    (_, message) = chat_of([*CHAT, {"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 7}
    assert call["function"]["arguments"] == '{"a": 7}'  # The caller's stays.
    for odd in ('{"a', "[1]", 5):
        call["function"]["arguments"] = odd
        turn = {"role": "assistant", "tool_calls": [call]}
        assert "that are a JSON object" in to_prompt(0, [*CHAT, turn], {}).refused


@pytest.mark.parametrize("call", [{"name": "add"}, {"function": {}}, None, "add"])
def test_a_call_in_another_shape_says_which_it_should_have(call: Any) -> None:
    turn = {"role": "assistant", "tool_calls": [call]}
    refused = to_prompt(0, [*CHAT, turn], {}).refused
    assert 'a tool call has "function", with "name" and "arguments"' in refused


def request(key: str = "a", **body: Any) -> dict[str, Any]:
    """A line as OpenAI's batch API has it."""
    body = {"model": "gpt-4o-mini", "messages": CHAT, **body}
    url = "/v1/chat/completions"
    return {"custom_id": key, "method": "POST", "url": url, "body": body}


def test_requests_of_openai_are_prompts_with_their_parameters() -> None:
    asked = {"max_completion_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 1}
    extra = {"stop": ["x"], "user": "me", "tools": None, "stream": False}
    prompt = to_prompt(0, request(**asked, **extra), {})
    sampling = {"max_tokens": 9, "temperature": 0, "top_p": 0.5, "seed": 1}
    assert prompt == Prompt(
        *(0, request(**asked, **extra), CHAT, "a", {**sampling, "stop": ["x"]}, {})
    )
    older = request(max_tokens=9, max_completion_tokens=None)
    assert to_prompt(0, older, {}).sampling_params == {"max_tokens": 9}


@pytest.mark.parametrize(
    "asked",
    [
        *({"tools": [{"type": "function"}]}, {"reasoning_effort": "low"}),
        *({"logprobs": True}, {"stream": True}, {"response_format": {"type": "x"}}),
    ],
)
def test_what_a_request_asks_for_in_vain_is_named(asked: dict) -> None:
    (name,) = asked
    with pytest.raises(TypeError, match=name):
        sampling_params(to_prompt(0, request(**asked), {}).sampling_params)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"type": "json_object"}, {"json_object": True}),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            {"json": {"type": "object"}},
        ),
    ],
)
def test_response_format_binds_a_model_that_does_not_think(
    asked: dict, meant: dict
) -> None:
    """Thinking is off in the request itself, or for the whole batch."""
    off = {"enable_thinking": False}
    for body, shared in (({"chat_template_kwargs": off}, {}), ({}, off)):
        line = request(response_format=asked, **body)
        prompt = to_prompt(0, line, shared)
        assert prompt.sampling_params == {"structured_outputs": meant}
        assert sampling_params(prompt.sampling_params).structured_outputs
    on = request(response_format=asked, chat_template_kwargs={"enable_thinking": True})
    for line, shared in ((request(response_format=asked), {}), (on, off)):
        assert "bind the thinking" in to_prompt(0, line, shared).refused


@pytest.mark.parametrize(
    "harmless",
    [
        {"logit_bias": {}, "tools": [], "logprobs": False, "top_logprobs": 0},
        {"tool_choice": "auto", "parallel_tool_calls": True, "functions": []},
        {"prompt_cache_key": "a", "safety_identifier": "b", "modalities": ["text"]},
        {"max_completion_tokens": None, "max_tokens": None},
        {"response_format": {"type": "text"}, "store": True, "metadata": {"a": "b"}},
    ],
)
def test_fields_of_clients_that_ask_for_nothing_are_taken(harmless: dict) -> None:
    prompt = to_prompt(0, request(**harmless), {})
    assert prompt.refused == "" and prompt.sampling_params is None


@pytest.mark.parametrize(
    "url",
    [
        *("/v1/chat/completions", "/chat/completions", "chat/completions/", None),
        "https://me.openai.azure.com/openai/deployments/x/chat/completions?v=1",
    ],
)
def test_the_urls_of_azure_and_openai_are_the_same(url: str | None) -> None:
    assert to_prompt(0, {**request(), "url": url}, {}).messages == CHAT


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (request(chat_template_kwargs=[1]), "are a dict"),
        ({**request(), "url": "/v1/embeddings"}, "/v1/embeddings"),
        ({**request(), "body": {"prompt": Q}}, "body, a JSON object with messages"),
        ({**request(), "body": "{"}, "body, a JSON object"),
    ],
)
def test_a_request_that_is_none_says_why(line: dict, reason: str) -> None:
    prompt = to_prompt(0, line, {})
    assert reason in prompt.refused and prompt.id == "a"


@pytest.mark.parametrize(
    "beside",
    [
        *({"id": 0}, {"messages": []}, {"prompt": np.array([Q, Q])}, {"seed": 0}),
        *({"sampling_params": {}}, {"chat_template_kwargs": {}}, {"temperature": 0.0}),
    ],
)
def test_what_stands_beside_a_body_is_refused_unless_it_is_null(beside: dict) -> None:
    (name,) = beside
    refused = to_prompt(0, request() | beside, {}).refused
    assert f"{name} stands beside the body: write it into the body" in refused
    assert to_prompt(0, request() | {name: None}, {}).messages == CHAT


def test_a_message_that_the_template_leaves_out_is_an_error() -> None:
    system = {"role": "developer", "content": "ONLY THIS"}
    check_formatted([system, *CHAT], f"<s>ONLY THIS</s> {Q} ")
    check_formatted([{"role": "tool", "content": 'a "b"'}], r'{"c": "a \"b\""}')
    parts = [{"type": "text", "text": "a  b"}, "c"]
    check_formatted([{"role": "user", "content": parts}], "a b\nc")
    earlier = {"role": "assistant", "content": "<think>\nWell\n</think>\n\n12 "}
    check_formatted([*CHAT, earlier], f"{Q} 12")
    with pytest.raises(ValueError, match="message 1, of role 'developer'"):
        check_formatted([system, *CHAT], Q)
    part_of_another = {"role": "ai", "content": Q[:4]}
    check_formatted([part_of_another, *CHAT], f"{Q[:4]} {Q}")
    with pytest.raises(ValueError, match="message 1, of role 'ai'"):
        check_formatted([part_of_another, *CHAT], Q)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    with pytest.raises(ValueError, match="message 2, of role 'assistant'"):
        check_formatted([*CHAT, call], Q)
    with pytest.raises(ValueError, match="message 2"):
        check_formatted([*CHAT, earlier], Q)
    for words in ("<think>Well</think> 12", "[THINK]Well[/THINK]12"):
        check_formatted([*CHAT, earlier | {"content": words}], f"{Q} 12")
    for said in ({"refusal": "No."}, {"function_call": {"name": "add"}}):
        with pytest.raises(ValueError, match="message 2"):
            check_formatted([*CHAT, {"role": "assistant"} | said], Q)
    with pytest.raises(ValueError, match="message 1"):
        check_formatted([{"role": "user", "content": parts}], "a b")


def test_a_tool_that_the_template_leaves_out_is_an_error() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}, {"name": "add"}]
    written = 'Tools: [{"name": "weather"}, {"name": "add"}]'
    check_formatted(CHAT, f"{written} {Q}", tools)
    with pytest.raises(ValueError, match="does not write the tool 'weather'"):
        check_formatted(CHAT, Q, tools)
    with pytest.raises(ValueError, match='each of the tools needs a "name"'):
        check_formatted(CHAT, Q, [{"type": "function", "function": {}}])
    chat = [{"role": "user", "content": "Call add or weather."}]
    with pytest.raises(ValueError, match="does not write the tool"):
        check_formatted(chat, chat[0]["content"], tools)


def test_a_picture_without_words_is_a_question() -> None:
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    chat = [{"role": "user", "content": [picture]}]
    prompt = to_prompt(0, chat, {})
    assert (prompt.refused, prompt.messages) == ("", chat)


@pytest.mark.parametrize("words", ["<think>\nI add.\n</think>", "<think>I add."])
def test_thinking_alone_is_a_beginning_to_go_on_with(words: str) -> None:
    chat = [*CHAT, {"role": "assistant", "content": words}]
    assert chat_of(chat) == chat
