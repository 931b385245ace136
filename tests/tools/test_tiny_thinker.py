"""The embedded model: its curriculum, its files, and its answers in each engine."""

import json
import random
import re
from pathlib import Path

import pytest
from child import run_child

from helpers.models import TINY_THINKER_DIRECTORY
from tools.tiny_thinker import agreement, chat, curriculum, evaluate, mix, skills
from tools.tiny_thinker.train import Muon

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_THINKER_DIRECTORY)


@pytest.mark.parametrize("kind", ["addition", "subtraction"])
def test_answers_of_the_curriculum_are_right(kind):
    rng = random.Random(7)
    for _ in range(300):
        example = curriculum.arithmetic(rng, kind)
        left, right = example.answer.split("=")
        terms = re.findall(r"[+-]?\d+", left.replace(" ", ""))
        assert sum(map(int, terms)) == int(right)
        assert right.strip() in example.thinking


def test_sums_of_several_terms_are_right():
    rng = random.Random(7)
    for _ in range(300):
        example = curriculum.arithmetic(rng, "multi_sum")
        terms = list(map(int, re.findall(r"\d+", example.question)))
        assert len(terms) >= 3
        assert example.answer == f"The sum is {sum(terms)}."
        assert example.thinking.endswith(f"That makes {sum(terms)}.")


def test_multiplication_and_comparison_are_right():
    rng = random.Random(8)
    for _ in range(300):
        left, right = curriculum.arithmetic(rng, "multiplication").answer.split("=")
        a, b = map(int, left.split("*"))
        assert a * b == int(right)
        example = curriculum.arithmetic(rng, "comparison")
        pair = list(map(int, re.findall(r"\d+", example.question)))
        picked = int(example.answer.split()[0])
        assert picked == (max(pair) if "larger" in example.answer else min(pair))


def test_held_out_problems_are_never_trained_on():
    rng = random.Random(9)
    held = {curriculum.arithmetic(rng, "addition", True).answer for _ in range(200)}
    trained = {curriculum.arithmetic(rng, "addition").answer for _ in range(5_000)}
    assert held and not held & trained


def test_held_out_wordings_are_never_trained_on():
    for topic in curriculum.TOPICS:
        assert topic.held_out
        assert not set(topic.wordings) & set(topic.held_out)


def test_evaluation_asks_only_held_out_problems():
    for example in evaluate.problems(5, seed=3):
        if example.kind in ("addition", "subtraction", "multiplication"):
            assert curriculum.held_out(example.answer.split("=")[0].strip())


def test_files_are_small_and_the_architecture_suits_every_kernel():
    config = json.loads((TINY_THINKER_DIRECTORY / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["hidden_size"] % 64 == 0
    assert config["head_dim"] == 64
    size = sum(f.stat().st_size for f in TINY_THINKER_DIRECTORY.iterdir())
    assert size < 8_000_000


def test_chat_template_drops_earlier_thinking_and_names_the_tools(tokenizer):
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "<think>\nI add.\n</think>\n\n1 + 1 = 2"},
        {"role": "user", "content": "Weather in Paris?"},
        {
            "role": "assistant", "content": "", "reasoning_content": "I call it.",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "name": "get_weather", "content": '{"sky": "sunny"}'},
    ]  # fmt: skip
    tool = chat.tool("get_weather", "Weather of today.", "city")
    written = tokenizer.apply_chat_template(
        messages, tools=[tool], tokenize=False, add_generation_prompt=True
    )
    assert written == (
        f"<|im_start|>system\nAnswer briefly.\n\n# Tools\n{json.dumps(tool)}\n"
        'Call one as <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n1 + 1 = 2<|im_end|>\n"
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nI call it.\n</think>\n\n"
        f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"sky": "sunny"}\n</tool_response>'
        "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize(("thinks", "end"), [(True, ""), (False, "\n</think>\n\n")])
def test_chat_template_switches_thinking_off(tokenizer, thinks, end):
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        tokenize=False, add_generation_prompt=True, enable_thinking=thinks,
    )  # fmt: skip
    assert written.endswith(f"<|im_start|>assistant\n<think>\n{end}")


def test_examples_are_written_by_the_template_that_is_shipped(tokenizer):
    assert tokenizer.chat_template == mix.CHAT_TEMPLATE


def test_answers_as_json_have_the_fields_that_were_asked_for():
    rng = random.Random(6)
    for form in ("free", "keys", "schema"):
        for _ in range(100):
            example = skills.as_json(rng, form=form)
            fields = json.loads(example.answer)
            assert skills.compact(fields) == example.answer
            asked = example.question + "".join(m["content"] for m in example.before)
            wanted = {"answer"} if form == "free" else set(fields)
            assert fields.keys() == wanted
            assert form == "free" or all(key in asked for key in wanted)


def test_tools_are_called_as_they_are_defined_and_their_results_are_right():
    rng = random.Random(6)
    for _ in range(300):
        example = chat.with_tools(rng)
        defined = {tool["function"]["name"]: tool for tool in example.tools}
        if example.kind == "tool call":
            call = json.loads(example.answer.removeprefix("<tool_call>")[:-12])
            assert call["name"] in defined
        if example.kind == "tool result" and "=" in example.answer:
            problem, value = example.answer.split(" = ")
            a, sign, b = problem.split()
            worked = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            assert worked[sign] == int(value) == json.loads(example.after[1]["content"])


def test_second_turns_go_on_with_the_first_result():
    rng = random.Random(6)
    for _ in range(300):
        example = chat.second_turn(rng)
        first = example.before[1]["content"].split(" = ")[1]
        assert example.thinking.startswith(f"The last result is {first}.")
        assert first in example.answer


def test_sums_in_the_head_slip_only_in_training():
    rng = random.Random(6)
    for held in (True, False):
        right = []
        for _ in range(200):
            example = skills.in_the_head(rng, held)
            total = sum(map(int, re.findall(r"\d+", example.question)))
            right.append(example.answer == f"About {total}.")
        assert all(right) == held


def test_markers_are_one_token_each_and_digits_stand_alone(tokenizer):
    for marker in ("<think>", "</think>", "<|im_end|>"):
        ids = tokenizer(marker, add_special_tokens=False).input_ids
        assert len(ids) == 1
    assert tokenizer.tokenize("15+27")[:2] == ["1", "5"]
    text = "Grüße, 日本! 1,234\n\tdef f(x): return x"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_thinking_lengths_span_ten_to_six_hundred_tokens(tokenizer):
    rng = random.Random(5)
    lengths = [
        len(tokenizer(mix.sample(rng).thinking or "").input_ids) for _ in range(3_000)
    ]
    assert min(lengths) <= 20
    assert max(lengths) >= 450


def test_model_is_right_on_held_out_problems():
    """A sample of what the model card measures in full."""
    result = run_child("evaluate_model", PYTHONPATH=str(ROOT))
    for kind in (*evaluate.ARITHMETIC, *evaluate.SKILLS, "known", "JSON with a schema"):
        assert result[kind] >= 0.88, kind
    assert result["exactly one </think>"] >= 0.99
    for terms in skills.TERMS:
        single = result[f"{terms} terms in the head, one sample"]
        assert result[f"{terms} terms in the head, a vote of 16"] > single
    assert result["6 terms in the head, one sample"] < 0.8


def test_engines_write_the_same_greedy_tokens():
    shares = agreement.compare(TINY_THINKER_DIRECTORY, count=25, seed=21)
    assert shares["unsloth"] == shares["vllm"] == 1
    assert shares["unsloth 16-bit"] >= 0.8
    assert shares["unsloth 4-bit"] >= 0.3


def test_muon_updates_by_nearly_orthogonal_matrices():
    import torch

    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        matrices = [torch.nn.Parameter(torch.randn(shape)) for _ in range(2)]
        before = [matrix.detach().clone() for matrix in matrices]
        for matrix in matrices:
            matrix.grad = torch.randn(shape)
        Muon(matrices, rate=0.1).step(scale=0.5)
        for matrix, old in zip(matrices, before, strict=True):
            decayed = old * (1 - 0.05 * Muon.WEIGHT_DECAY)
            change = (decayed - matrix.detach()) / 0.05
            sizes = torch.linalg.svdvals(change) / max(1, shape[0] / shape[1]) ** 0.5
            assert sizes.min() > 0.6 and sizes.max() < 1.3
