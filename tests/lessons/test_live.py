"""A response while it is written; in a notebook: tests/browser/test_jupyterlab.py."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.live import LiveResponse
from helpers.thinking import parse_thinking_response


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    core.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_a_live_response_ends_as_parsing_at_once_does(tokenizer, capsys) -> None:
    prompt = tokenizer.encode("Hi<think>")
    completion = tokenizer.encode("one and two</think>three, four, five")
    live = LiveResponse(tokenizer)
    live.put([prompt])
    for token_id in completion:
        live.put([token_id])
    live.end()
    assert live.result == parse_thinking_response(
        completion, tokenizer, prompt_token_ids=prompt
    )
    assert tuple(live.result) == ("one and two", "three, four, five")
    # Outside a notebook it is printed, once.
    assert capsys.readouterr().out.count("three, four, five") == 1


def test_a_live_response_tells_the_models_end_from_its_limit(tokenizer) -> None:
    for last, reason in ([], None), ([tokenizer.eos_token_id], "stop"):
        live = LiveResponse(tokenizer)
        live.put(tokenizer.encode("Hi<think>"))
        live.put([*tokenizer.encode("one"), *last])
        live.end()
        assert (live.result.response, live.result.finish_reason) == (None, reason)


def test_a_live_response_refuses_a_batch(tokenizer) -> None:
    with pytest.raises(ValueError, match="one prompt"):
        LiveResponse(tokenizer).put([[1], [2]])


def test_the_next_token_after_the_stop_button_is_an_interrupt(tokenizer) -> None:
    live = LiveResponse(tokenizer)
    live.put(tokenizer.encode("Hi<think>"))
    live.put(tokenizer.encode("one"))
    live._stop.set()  # As the button does.
    with pytest.raises(KeyboardInterrupt):
        live.put(tokenizer.encode(" two"))
    assert live.result.finish_reason == "abort"
    assert tuple(live.result) == ("one", None)
