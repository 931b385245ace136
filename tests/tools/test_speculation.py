"""Speculation on a CPU: the drafts are real, and their acceptance is the model's."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.speculation import MAX_TOKENS, set_acceptance


@pytest.mark.parametrize("draft", ["", "tiny-thinker"])
def test_both_engines_are_measured_and_every_step_has_drafts(
    tmp_path: Path, draft: str
) -> None:
    out = tmp_path / "speculation.json"
    command = [sys.executable, "-m", "tools.speculation", "--out", str(out)]
    command += ["--batch-sizes", "1,3", "--repeats", "1"]
    command += ["--options", '{"block_size": 32}']
    command += ["--draft", draft] if draft else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["device"].startswith("CPU") and found["model"] == "tiny-thinker"
    assert found["options"] == {"block_size": 32}
    assert 1 < found["limit"]["3"] / found["limit"]["1"] < 3
    plain, real = (found["acceptance"][name] for name in ("none", "real"))
    for size in ("1", "3"):
        assert len(plain[size]["tokens_per_second"]) == 1
        assert "tokens_per_draft" not in plain[size]
        requests = 2 * int(size)  # The warm-up and the repeat.
        per_draft = real[size]["tokens_per_draft"]
        # The first token of a request comes with its prompt, all others from drafts.
        assert real[size]["drafts"] * per_draft >= requests * (MAX_TOKENS - 1)
        assert per_draft > 4.9 if draft else 1 <= per_draft < 5


@pytest.mark.parametrize(
    ("length", "chances"),
    [(1, [0, 0, 0, 0]), (3, [1, 1, 0, 0]), (3.25, [1, 1, 0.25, 0]), (5, [1, 1, 1, 1])],
)
def test_acceptance_is_shared_out_over_the_drafts(length: float, chances: list) -> None:
    import torch

    rates = torch.full((4,), 0.5)
    sampler = SimpleNamespace(synthetic_conditional_rates=rates)
    runner = SimpleNamespace(rejection_sampler=sampler)
    set_acceptance(SimpleNamespace(model_runner=runner), length)
    assert rates.tolist() == chances
