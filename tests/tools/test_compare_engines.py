import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.models import MODELS, TINY_THINKER
from helpers.speed import load_figures
from tools import compare_engines
from tools.compare_engines_child import Job, limits, mixed

SMALL = (
    "--batch-sizes 1,3 --prompt-tokens 8 --max-tokens 4 --mixed 3 --mixed-prompt 2,9"
)
SMALL += " --mixed-answer 2,9 --at-once 2 --batch-tokens 8 --repeats 2"


def test_the_command_measures_real_engines_in_processes_of_their_own(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tools.compare_engines", *SMALL.split()]
    command += ["--precisions", "16-bit", "--out", str(tmp_path / "cpu.json")]
    for engines in ("transformers", "transformers,unsloth-fast"):
        done = subprocess.run(
            [*command, "--engines", engines], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "transformers" not in done.stdout.splitlines()[0]  # It was there already.
    assert "tokens/s, 3 prompts of different lengths" in done.stdout

    recorded = json.loads((tmp_path / "cpu.json").read_text())
    assert "torch" in recorded["versions"] and recorded["model"] == TINY_THINKER
    standard, fast = recorded["engines"]
    assert fast["settings"]["max_num_seqs"] == 3
    assert len(fast["run_batch"]) == 2
    for record in (standard, fast):
        assert record["load_seconds"] > 0 and record["bandwidth"] > 0
        assert set(record["limit"]) == {"1", "3"}
    standard, fast = load_figures("cpu", tmp_path)
    assert (standard.name, fast.engine) == (
        "transformers generate, 16-bit",
        "Unsloth fast_generate",
    )
    for figures in (standard, fast):
        assert recorded["date"] in figures.device
        assert len(figures.tokens_per_second[3]) == len(figures.ttft_seconds[3]) == 2
        assert min(figures.mixed[3]) > 0


def test_an_engine_that_takes_too_long_is_ended_and_the_others_go_on(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(compare_engines, "POLL_SECONDS", 0.01)
    jobs = [Job(engine, TINY_THINKER) for engine in ("transformers", "vllm")]
    results = compare_engines.run(jobs, tmp_path / "cpu.json", timeout=0.1)
    errors = [record["error"] for record in results["engines"]]
    assert len(errors) == 2 and all("not done after" in error for error in errors)
    assert json.loads((tmp_path / "cpu.json").read_text()) == results
    assert "failed" in capsys.readouterr().err


def test_figures_of_two_comparisons_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    compare_engines.run([Job("vllm", TINY_THINKER, "4-bit")], out, 1)
    other = {"model": TINY_THINKER, "job": {"max_tokens": 1}, "engines": []}
    out.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="holds another comparison"):
        compare_engines.run([Job("vllm", TINY_THINKER, "4-bit")], out, 1)


def test_every_engine_gets_the_same_lengths() -> None:
    job = Job("vllm", TINY_THINKER)
    prompts, answers = mixed(job, 64)
    assert (prompts, answers) == mixed(Job("transformers", TINY_THINKER), 64)
    assert all(16 <= len(prompt) <= 512 for prompt in prompts)
    assert 64 <= min(answers) < 100 and 900 < max(answers) <= 1024
    assert max(map(len, prompts)) + max(answers) < job.max_length


def test_the_limit_is_reached_when_reading_takes_all_the_time(tmp_path: Path) -> None:
    spec = MODELS[TINY_THINKER]
    job = Job("vllm", TINY_THINKER, batch_sizes=(2,), prompt_tokens=8, max_tokens=4)
    read = spec.weight_bytes(load_in_4bit=False) + 2 * 10 * spec.kv_bytes_per_token
    assert limits(job, "cpu", read) == {2: pytest.approx(2, rel=0.01)}

    # A separate input embedding is not read whole.
    config = {"dtype": "float32", "vocab_size": 100, "hidden_size": 8, "head_dim": 4}
    config |= {"num_hidden_layers": 3, "num_key_value_heads": 2}
    config["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 4 * (800 + 800 + 32))
    job = Job("vllm", str(tmp_path), batch_sizes=(1,), prompt_tokens=8, max_tokens=4)
    read = 4 * (800 + 32) + 10 * 3 * 2 * 2 * 4 * 4
    assert limits(job, "cpu", read) == {1: pytest.approx(1)}


@pytest.mark.parametrize(
    "wrong", [["--engines", "vllm,other"], ["--precisions", "8-bit"], ["--mixed", "0"]]
)
def test_a_wrong_argument_ends_the_command(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_engines.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
