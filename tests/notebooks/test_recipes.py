"""What the recipes say of an answer, and what the notebooks said in their last run."""

import ast
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from notebook_gates import ROOT, cells, tags, texts
from transformers import AutoTokenizer

from helpers.models import MODELS

FOLDER = ROOT / "notebooks"
OPENED, CLOSED = "<|im_start|>assistant\n<think>\n", "<think>\n\n</think>\n\n"


def recipe_function(name: str, notebook: str):
    """Compile one function of a notebook's take-away, without running the rest."""
    source = next(
        cell.source
        for _, cell in cells(next(FOLDER.glob(f"{notebook}_*")), "code")
        if "take-away" in tags(cell)
    )
    found = [
        node for node in ast.parse(source).body if getattr(node, "name", 0) == name
    ]
    namespace: dict = {}
    exec(compile(ast.Module(found, []), notebook, "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize(
    ("prompt", "completion", "answer"),
    [
        (OPENED, "I add.\n</think>\n\n42<|im_end|>", "42"),
        (OPENED, "I add.\n</think>\n\n", ""),
        (OPENED, "I add", None),  # cut off
        (CLOSED, "42<|im_end|>", "42"),  # thinking switched off
        ("Assistant:", "42<|im_end|>", "42"),  # a model that does not think
        ("Assistant:", "42 and no m", "42 and no m"),  # the same, cut off
        ("Assistant:", "<think>\nI add.\n</think>\n\n42", "42"),  # opens it itself
        ("Assistant:", "<think>\nI add", None),
        (OPENED, "I add.\n</think>\n\nIt is </think>", "It is </think>"),
    ],
)
def test_a_recipe_tells_cut_off_thinking_from_an_answer(prompt, completion, answer):
    tokenizer = AutoTokenizer.from_pretrained(MODELS["tiny-thinker"].path)
    prompt_ids, ids = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in (prompt, completion)
    )
    output = SimpleNamespace(
        prompt_token_ids=prompt_ids, outputs=[SimpleNamespace(token_ids=ids)]
    )
    assert recipe_function("split_thinking", "04")(output, tokenizer)[1] == answer
    assert recipe_function("answer", "05")(output, tokenizer) == answer


SAID = [
    ("04", r"RESPONSE ===\n15 \+ 27 = 42"),
    ("04", r"\d{3} tokens of thinking, then: The sum is 402"),
    ("04", r"finish_reason: length, response: None"),
    ("04", r"0 tokens of thinking: "),
    ("04", r"\d\d tokens less to read"),
    ("05", r"Q: What is recursion\? \(stop\)\nA: Recursion"),
    ("05", r"2: 15 \+ 27 = 42"),
    ("05", r'"id": "sum-3"'),
    ("05", r"killed with \d+ of 60 records written"),
    ("05", r"60 records after the second run, \d+ from the first"),
    ("07", r"\d+ linear layers in 4 bits, 1 as it was"),
    ("07", r"demo/thinker .* \['main', 'v1'\]"),
    ("07", r"unsloth/a-model-that-is-not-here is not on this machine"),
]


@pytest.mark.parametrize(("notebook", "pattern"), SAID)
def test_the_last_run_said(notebook, pattern):
    path = next(FOLDER.glob(f"{notebook}_*"))
    said = "\n".join(text for where, text in texts(path) if where.startswith("output"))
    assert re.search(pattern, said)


def test_07_names_the_repository_that_unsloth_takes_instead():
    package = Path(find_spec("unsloth").origin).parent
    mapper = runpy.run_path(str(package / "models" / "mapper.py"))
    taken = mapper["FLOAT_TO_INT_MAPPER"]["qwen/qwen3-4b-thinking-2507"]
    notebook = next(FOLDER.glob("07_*"))
    rows = [line for _, text in texts(notebook) for line in text.splitlines()]
    assert any(line.startswith("| pre-quantised") and taken in line for line in rows)
