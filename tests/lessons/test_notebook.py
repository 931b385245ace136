"""helpers.notebook: the call that sets a notebook up, and what it can check."""

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
from child import find_child, run_child
from transformers import AutoTokenizer

from helpers import loading, notebook
from helpers.internals.machine.versions import find_version
from helpers.models import MODELS, TINY_THINKER, TINY_THINKER_DIRECTORY
from helpers.notebook import ANSWER_TOKENS, NOISE_TOKENS, Setup, to_token_ids

CHILD = find_child("set_up")
NOISE_CARD = "---\ntags: [random-weights]\n---\n# Noise\n"
SETUP = Setup(
    model_name="unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit",
    load_in_4bit=True,
    max_seq_length=4096,
    gpu_memory_utilization=0.5,
    device="cuda",
    device_name="NVIDIA H100 80GB HBM3",
    sampling={"temperature": 0.6},
    is_noise=False,
    text_model="unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit",
    max_tokens=2048,
)


def test_what_a_notebook_is_told(tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "README.md").write_text(NOISE_CARD)
    models = ("auto", str(noise), str(TINY_THINKER_DIRECTORY), SETUP.model_name)
    done = subprocess.run(
        [sys.executable, str(CHILD), *models],
        cwd=tmp_path,
        env=os.environ | {"DEVICE": "cpu", "MAX_SEQ_LENGTH": "1024"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1, "the engines greet"
    found = json.loads(done.stdout)
    assert found["unsloth"]
    tiny, random, *_ = found["setups"]
    assert (tiny["model_name"], tiny["load_in_4bit"]) == (TINY_THINKER, False)
    assert tiny["sampling"] == dict(MODELS[TINY_THINKER].sampling)
    assert tiny["device"] == "cpu" and "cores" in tiny["device_name"]
    assert tiny["max_tokens"] == 512 < ANSWER_TOKENS, "half of the context"
    assert tiny["line"].startswith("tiny-thinker (32-bit, context 1,024 tokens) on a ")
    assert not tiny["is_noise"] and random["is_noise"]
    assert random["max_tokens"] == NOISE_TOKENS and random["load_in_4bit"]
    assert random["sampling"]["top_k"] == 20
    real = [one["text_model"] for one in found["setups"]]
    assert real == ["smollm2"] * 3 + [SETUP.model_name]


def test_the_line_says_model_precision_context_machine_and_versions():
    assert repr(SETUP) == (
        "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit (4-bit, context 4,096 tokens) "
        f"on NVIDIA H100 80GB HBM3; Unsloth {find_version('unsloth')}, "
        f"vLLM {find_version('vllm')}, PyTorch {find_version('torch')}"
    )
    noise = replace(SETUP, load_in_4bit=False, is_noise=True)
    assert "(16-bit, context 4,096 tokens, random weights: its text is" in repr(noise)


@pytest.mark.parametrize(("device", "expected"), [("cuda", "CUDA"), ("cpu", "a CPU")])
def test_a_gpu_that_nvml_does_not_show_is_no_cpu(monkeypatch, device, expected):
    monkeypatch.setitem(vars(loading), "FastLanguageModel", None)
    monkeypatch.setattr(notebook, "current_gpu", lambda: None)
    monkeypatch.setenv("DEVICE", device)
    monkeypatch.setenv("MODEL_NAME", "tiny-thinker")
    assert notebook.set_up().device_name.startswith(expected)


def test_it_can_not_be_changed():
    with pytest.raises(FrozenInstanceError):
        SETUP.max_tokens = 1


def test_a_claim_about_the_text_fails_except_on_noise(capsys):
    SETUP.check("42" in "It is 42.", "15 + 27 is 42")
    assert capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match="15 . 27 is 42"):
        SETUP.check(None, "15 + 27 is 42")
    replace(SETUP, is_noise=True).check(None, "15 + 27 is 42")
    printed = capsys.readouterr().out
    assert printed == "Not checked, since the text is noise: 15 + 27 is 42.\n"


def test_an_exact_claim_fails_except_on_a_gpu(capsys):
    on_cpu = replace(SETUP, device="cpu", is_noise=True)
    on_cpu.check_exactly(True, "the tokens agree")
    assert capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match="the tokens agree"):
        on_cpu.check_exactly(False, "the tokens agree")
    SETUP.check_exactly(False, "the tokens agree")
    assert "Not checked, since a GPU rounds" in capsys.readouterr().out


def test_one_line_loads_by_the_settings_and_arguments_win():
    found = run_child("set_up_load", MAX_SEQ_LENGTH="128")
    assert found["fast"] == {"context": 128, "at_once": 4}
    assert found["standard"] == {"context": 96, "vllm": False}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY)


QUESTION = {"role": "user", "content": "What is 2 + 2?"}
BEGUN = {"role": "assistant", "content": "<think>\n2 + 2"}


def test_a_chat_becomes_the_token_ids_that_its_template_writes(tokenizer):
    ids = to_token_ids([QUESTION], tokenizer)
    text = tokenizer.apply_chat_template(
        [QUESTION], tokenize=False, add_generation_prompt=True
    )
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert to_token_ids(QUESTION["content"], tokenizer) == ids
    processor = SimpleNamespace(tokenizer=tokenizer)
    assert to_token_ids([QUESTION], processor) == ids


def test_a_chat_that_ends_with_the_assistant_is_continued(tokenizer):
    text = tokenizer.decode(to_token_ids([QUESTION, BEGUN], tokenizer))
    assert text.endswith(BEGUN["content"])
    empty = {"role": "assistant", "content": ""}
    ids = to_token_ids([QUESTION, empty], tokenizer)
    assert ids == to_token_ids([QUESTION], tokenizer)


def test_what_a_template_takes_goes_to_it(tokenizer):
    function = {"name": "add", "description": "Adds.", "parameters": {}}
    tools = [{"type": "function", "function": function}]
    text = tokenizer.decode(to_token_ids("Add 1 and 2.", tokenizer, tools=tools))
    assert '"name": "add"' in text
    ids = to_token_ids([QUESTION], tokenizer, add_generation_prompt=False)
    assert ids != to_token_ids([QUESTION], tokenizer)
    assert tokenizer.decode(ids) in tokenizer.decode(
        to_token_ids([QUESTION], tokenizer)
    )


def test_a_tokenizer_without_a_template_says_so():
    bare = AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY)
    bare.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        to_token_ids("Hello", bare)
