"""The embedded model: its curriculum, its files, and its answers in each engine."""

import json
import random
import re
import subprocess
import sys

import pytest

from helpers.tiny_thinker import MODEL_DIR
from tools.tiny_thinker import agreement, curriculum, evaluate
from tools.tiny_thinker.train import Muon


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


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
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["hidden_size"] % 64 == 0
    assert config["head_dim"] == 64
    size = sum(f.stat().st_size for f in MODEL_DIR.iterdir())
    assert size < 8_000_000


def test_chat_template_writes_what_the_model_was_trained_on(tokenizer):
    rng = random.Random(4)
    old = curriculum.arithmetic(rng, "addition")
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": old.question},
        {
            "role": "assistant",
            "content": f"<think>\n{old.thinking}\n</think>\n\n{old.answer}",
        },
        {"role": "user", "content": "Hello"},
    ]
    written = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert written == curriculum.prompt_text("Hello", [old], "Answer briefly.")
    assert written.endswith("<think>\n")
    assert old.thinking not in written


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
        len(tokenizer(curriculum.sample(rng).thinking).input_ids) for _ in range(3_000)
    ]
    assert min(lengths) <= 20
    assert max(lengths) >= 450


def test_model_is_right_on_held_out_problems():
    """A sample of what the model card measures in full."""
    code = (
        "import json; from helpers.tiny_thinker import MODEL_DIR; "
        "from tools.tiny_thinker import evaluate; "
        "print(json.dumps(evaluate.evaluate(MODEL_DIR, count=25, seed=11)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    result = json.loads(printed.splitlines()[-1])
    for kind in ("addition", "subtraction", "multi_sum", "comparison", "known"):
        assert result[kind] >= 0.9, kind
    assert result["exactly one </think>"] >= 0.99


def test_engines_write_the_same_greedy_tokens():
    shares = agreement.compare(MODEL_DIR, count=50, seed=21)
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
