"""What notebooks said in their last run, and what their recipes make of an answer."""

import contextlib
import io
import statistics
import sys
from types import SimpleNamespace

import pytest
from notebook_gates import ROOT, cells, tags, texts

from helpers import load_figures

FOLDER = ROOT / "notebooks"
SAID = {
    "01": ["none failed", "12 GB: Fits: 3 requests", "8 GB: Does not fit"],
    "08": ["32 of 32 answers have the new ending", "I was made in a notebook."],
    "09": [
        "0 draws outside the cut",
        "other seed, same tokens:  False",
        "alone or among others:    True",
        "n=3 is seeds 1, 2 and 3:  True",
        "Answer: 31",
    ],
    "10": ["with a calculator: 100% right", "a=475 b=327 sum=802"],
    "11": ["96 of 96 sums are right", "48 prompts would be asked again", "-> 7 + 19"],
}


@pytest.mark.parametrize("name", SAID)
def test_a_notebook_said_what_its_text_reads(name):
    path = next(FOLDER.glob(f"{name}_*.ipynb"))
    said = "\n".join(text for place, text in texts(path) if place.startswith("output"))
    assert [line for line in SAID[name] if line not in said] == []


@pytest.mark.parametrize(
    ("completions", "answer"),
    [
        ([("31", "stop"), ("30", "stop"), ("So it is 31.", "stop")], "31"),
        ([("About 1,234 in all", "stop"), ("1234", "stop"), ("7", "stop")], "1234"),
        ([("7 + 4 + 9", "length"), ("It is 20", "stop")], "20"),
        ([("7 + 4", "length")], "none: raise max_tokens"),
        ([("I can't say.", "stop")], "none: raise max_tokens"),
    ],
)
def test_the_vote_of_09_counts_results(monkeypatch, completions, answer):
    outputs = [SimpleNamespace(text=t, finish_reason=r) for t, r in completions]
    engine = SimpleNamespace(chat=lambda *_: [SimpleNamespace(outputs=outputs)])
    vllm = SimpleNamespace(LLM=lambda *_, **__: engine, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    recipe = next(
        cell.source
        for _, cell in cells(next(FOLDER.glob("09_*")), "code")
        if "take-away" in tags(cell)
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(recipe, {"__name__": "__main__"})
    assert printed.getvalue().splitlines()[-1] == f"Answer: {answer}"


def test_11_quotes_what_was_recorded():
    path = next(FOLDER.glob("11_*.ipynb"))
    text = " ".join(" ".join(c.source.split()) for _, c in cells(path, "markdown"))
    speeds = {
        (one.name, n): statistics.median(values)
        for one in load_figures("h200")
        for n, values in one.mixed.items()
    }
    generate = speeds["transformers generate, 16-bit", 64]
    batch = speeds["transformers generate_batch, 16-bit", 64]
    fp8 = speeds["vLLM, bare, FP8", 256]
    assert f"made {generate:.0f} tokens/s on these 64 prompts" in text
    assert "it is six times as fast" in text and round(fp8 / batch) == 6
