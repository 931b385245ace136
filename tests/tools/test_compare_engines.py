import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from helpers.models import MODELS, TINY_THINKER
from helpers.speed import load_figures
from tools import compare_engines, engines
from tools.compare_engines_child import limits, mixed
from tools.engines import ROWS, Job

SMALL = (
    "--batch-sizes 1,3 --prompt-tokens 8 --max-tokens 4 --mixed 3 --mixed-prompt 2,9"
)
SMALL += " --mixed-answer 2,9 --at-once 2 --repeats 2"


def compare(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.compare_engines", *SMALL.split()]
    command += ["--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_measures_real_engines_in_processes_of_their_own(
    tmp_path: Path,
) -> None:
    out, other = tmp_path / "cpu.json", tmp_path / "other.json"
    for rows in ("transformers", "transformers,unsloth-fast-adapter,vllm-fp8"):
        done = compare(out, "--rows", rows)
        assert done.returncode == 0, done.stderr
    assert "transformers" not in done.stdout.splitlines()[0]  # It was there already.
    assert "tokens/s, 3 prompts of different lengths" in done.stdout
    done = compare(other, "--rows", "transformers-batch")
    assert done.returncode == 0, done.stderr
    compare_engines.merge([out, other], out)

    recorded = json.loads(out.read_text())
    assert "torch" in recorded["versions"] and recorded["model"] == TINY_THINKER
    standard, in_flight, fast = recorded["engines"]
    assert fast["settings"]["max_num_seqs"] == 3 and fast["settings"]["enable_lora"]
    assert in_flight["settings"] == {"attention": "paged|sdpa"}
    for record in recorded["engines"]:
        assert record["load_seconds"] > 0 and record["bandwidth"] > 0
        assert set(record["limit"]) == {"1", "3"}
    standard, in_flight, fast = load_figures("cpu", tmp_path)
    assert (standard.name, fast.engine) == (
        "transformers generate, 16-bit",
        "Unsloth fast_generate, adapter",
    )
    for figures in (standard, in_flight, fast):
        assert recorded["date"] in figures.device
        assert len(figures.tokens_per_second[3]) == len(figures.ttft_seconds[3]) == 2
        assert min(figures.mixed[3]) > 0


def test_a_second_pass_goes_backwards_and_adds_its_repeats(
    tmp_path: Path, monkeypatch
) -> None:
    order = []

    def measure(job: Job, keep, timeout: float) -> None:
        order.append(job.row)
        speeds = {"1": [float(len(order))]}
        if len(order) == 3:
            keep({"tokens_per_second": speeds, "error": "(9) killed"})
        else:
            keep({"load_seconds": len(order), "tokens_per_second": speeds, "passes": 1})

    monkeypatch.setattr(compare_engines, "run_child", measure)
    jobs = [Job(row, TINY_THINKER) for row in ("transformers", "unsloth")]
    out = tmp_path / "cpu.json"
    compare_engines.run(jobs, out, passes=2, seconds=100)
    results = compare_engines.run(jobs, out, passes=2, seconds=100)
    assert order == ["transformers", "unsloth", "unsloth", "transformers", "unsloth"]
    first, second = results["engines"]
    assert first["tokens_per_second"] == {"1": [1.0, 4.0]} and first["passes"] == 2
    assert second["tokens_per_second"] == {"1": [2.0, 5.0]} and "error" not in second
    assert second["load_seconds"] == 2
    assert json.loads(out.read_text()) == results


def test_an_engine_that_takes_too_long_is_ended_and_the_others_go_on(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(compare_engines, "POLL_SECONDS", 0.01)
    ended = []
    for row in ("transformers", "vllm"):
        job = Job(row, TINY_THINKER)
        compare_engines.run_child(job, ended.append, timeout=0.1)
    assert len(ended) == 2 and all("not done after" in r["error"] for r in ended)
    assert "failed" in capsys.readouterr().err


def test_no_row_begins_when_the_time_is_over(tmp_path: Path, capsys) -> None:
    jobs = [Job("transformers", TINY_THINKER)]
    results = compare_engines.run(jobs, tmp_path / "cpu.json", passes=1, seconds=1)
    assert results["engines"] == []
    assert "transformers: left out, no time" in capsys.readouterr().out


def test_figures_of_two_comparisons_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    other = {"model": TINY_THINKER, "job": {"max_tokens": 1}, "device": "CPU"}
    out.write_text(json.dumps({**other, "engines": []}))
    with pytest.raises(ValueError, match="holds another comparison"):
        compare_engines.run([Job("vllm", TINY_THINKER)], out, 1, 1)
    another = tmp_path / "gpu.json"
    another.write_text(json.dumps({**other, "device": "GPU", "engines": []}))
    with pytest.raises(ValueError, match="not the same comparison"):
        compare_engines.merge([out, another], out)


def test_cells_that_were_measured_later_join_those_of_their_row(tmp_path: Path) -> None:
    results = {"model": TINY_THINKER, "device": "GPU", "engines": []}
    whole, part = tmp_path / "gpu.json", tmp_path / "part.json"
    row = {"row": "unsloth", "tokens_per_second": {"1": [5.0]}, "mixed": {"64": [2.0]}}
    job = {"max_tokens": 128, "batch_sizes": [1], "mixed": [64]}
    first = {**results, "job": job, "engines": [{**row, "error": "(9) no time"}]}
    row = {"row": "unsloth", "tokens_per_second": {}, "mixed": {"256": [3.0]}}
    second = {**results, "job": {**job, "mixed": [256]}, "engines": [row]}
    whole.write_text(json.dumps(first))
    part.write_text(json.dumps(second))
    (record,) = compare_engines.merge([whole, part], whole)["engines"]
    assert record["mixed"] == {"64": [2.0], "256": [3.0]} and "error" not in record
    assert record["tokens_per_second"] == {"1": [5.0]}


def test_two_engines_share_the_prompts_and_keep_their_order(monkeypatch) -> None:
    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        return [ids * n for ids, n in zip(prompts, lengths, strict=True)]

    monkeypatch.setitem(engines._loaded, "generate", generate)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        shared = partial(engines.generate_with_each, [one, other])
        assert shared([[7]], [3]) == [[7] * 3]
        assert shared([[1], [2], [3]], [1, 2, 3]) == [[1], [2] * 2, [3] * 3]


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
    # Two engines on two cards read twice as much, at twice the speed.
    job = Job("vllm-each", *list(vars(job).values())[1:])
    read = 2 * 4 * (800 + 32) + 10 * 3 * 2 * 2 * 4 * 4
    assert limits(job, "cpu", read / 2) == {1: pytest.approx(1)}
    # In FP8 the 32 weights within the layers take a byte each, as does the cache.
    job = Job("vllm-fp8-cache", *list(vars(job).values())[1:])
    read = 4 * 800 + 32 + 10 * 3 * 2 * 2 * 4
    assert limits(job, "cpu", read) == {1: pytest.approx(1)}


@pytest.mark.parametrize(
    "wrong", [["--rows", "vllm,other"], ["--mixed", "0"], ["--passes", "many"]]
)
def test_a_wrong_argument_ends_the_command(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_engines.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_rows_have_names_of_their_own() -> None:
    names = {(row.title, row.precision) for row in ROWS.values()}
    assert len(names) == len(ROWS)
