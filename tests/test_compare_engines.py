import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.models import MODELS, TINY_THINKER
from tools import compare_engines
from tools.compare_engines import Footprint, Job, footprint, format_table, rows


def test_the_command_measures_real_engines_in_processes_of_their_own(
    tmp_path: Path,
) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "tools.compare_engines", "engines"]
    command += ["--engines", "transformers,unsloth-fast", "--precisions", "16bit"]
    command += ["--batch-sizes", "1,3", "--prompt-tokens", "8", "--max-tokens", "4"]
    command += ["--layer-tokens", "8"]
    command += ["--repeats", "2", "--no-reload", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| Unsloth fast_generate | 16bit | 3 |" in done.stdout

    results = json.loads(out.read_text())
    assert results["bandwidth"] > 0
    assert "torch" in results["machine"]["versions"]
    engines = {record["engine"]: record for record in results["records"]}
    assert set(engines) == {"transformers", "unsloth-fast"}
    assert engines["unsloth-fast"]["settings"]["max_num_seqs"] == 3
    assert len(engines["unsloth-fast"]["layer"]) == 2
    assert "16bit: run_batch takes" in done.stdout and "at batch 3" in done.stdout
    for record in engines.values():
        assert record["load_seconds"] > 0
        for size in ("1", "3"):
            figures = record["batches"][size]
            assert len(figures["tokens_per_second"]) == 2
            assert min(figures["tokens_per_second"] + figures["ttft_seconds"]) > 0
    table = subprocess.run(
        [*command[:3], "table", "--charts", str(out)], capture_output=True, text=True
    )
    assert table.stdout.strip() in done.stdout
    for name in ("results-speed.png", "results-limit.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_an_engine_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def in_child(command: str, argument: str, timeout: float, env: dict) -> object:
        if command == "bandwidth":
            return 1e9
        if json.loads(argument)["engine"] == "vllm":
            raise RuntimeError("child failed (1):\nthe cause")
        return {
            "import_seconds": 1.0,
            "load_seconds": 2.0,
            "memory_mib": {"load": 5},
            "batches": {"1": {"tokens_per_second": [9.0], "ttft_seconds": [0.1]}},
        }

    monkeypatch.setattr(compare_engines, "_in_child", in_child)
    out = tmp_path / "results.json"
    command = ["engines", "--engines", "vllm,transformers", "--precisions", "16bit"]
    assert compare_engines.main([*command, "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "| transformers generate | 16bit | 1 | 9 |" in printed
    assert "vLLM, bare, 16bit: the cause" in printed
    assert len(json.loads(out.read_text())["records"]) == 2


def test_a_child_that_takes_too_long_is_ended() -> None:
    job = Job("transformers", TINY_THINKER, batch_sizes=(1,))
    record = compare_engines.run_engine(job, timeout=0.01)
    assert "not done after" in record["error"]


def test_the_footprint_is_that_of_the_models_files() -> None:
    spec = MODELS[TINY_THINKER]
    read = footprint(TINY_THINKER, "16bit", spec.bytes_per_value)
    assert read.kv_bytes_per_token == spec.kv_bytes_per_token
    assert read.weight_bytes == spec.weight_bytes(load_in_4bit=False)
    four = footprint(TINY_THINKER, "4bit", spec.bytes_per_value)
    assert four.weight_bytes == pytest.approx(spec.weight_bytes(True), rel=0.05)


def test_a_separate_input_embedding_is_not_read_whole(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": [100, 8],
        "lm_head.weight": [100, 8],
        "model.layers.0.mlp.up_proj.weight": [4, 8],
        "model.norm.weight": [8],
    }
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    config = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = footprint(str(tmp_path), "16bit", 2)
    assert read == Footprint((800 + 32 + 8) * 2, 2 * 3 * 2 * 4 * 2)


def test_the_limit_is_reached_when_reading_takes_all_the_time() -> None:
    # 1,000 bytes of weights and 2 x 10 x 5 of KV cache at 1,100 bytes a second.
    read = Footprint(1000, 5)
    assert read.limit(2, 10, 1100) == 2.0
    record = {
        "engine": "vllm",
        "precision": "16bit",
        "prompt_tokens": 8,
        "max_tokens": 5,
        "footprint": {"weight_bytes": 1000, "kv_bytes_per_token": 0},
        # 10 tokens in 5 s of which 1 s for the first ones: 8 tokens in 4 s.
        "batches": {"2": {"tokens_per_second": [2.0, 1.0, 4.0], "ttft_seconds": [1]}},
    }
    (row,) = rows({"records": [record], "bandwidth": 2000})
    assert row["decode tokens/s"] == 2.0
    assert row["limit"] == 4.0
    assert row["of limit"] == 0.5
    assert row["spread"] == 1.5


def test_one_token_has_no_decode_speed() -> None:
    record = {
        "engine": "vllm",
        "precision": "16bit",
        "prompt_tokens": 8,
        "max_tokens": 1,
        "import_seconds": 1.0,
        "load_seconds": 1.0,
        "memory_mib": {},
        "footprint": {"weight_bytes": 1000, "kv_bytes_per_token": 0},
        "batches": {"1": {"tokens_per_second": [2.0], "ttft_seconds": [0.5]}},
    }
    place = {"device": "CPU", "date": "2026-01-01", "versions": {}}
    results = {"machine": place, "bandwidth": 1e9, "records": [record]}
    assert "| 500 ms | - | 1,000,000 | - |" in format_table(results)


def test_the_same_engine_takes_over_unsloths_settings(monkeypatch) -> None:
    seen = []

    def run_engine(job: Job, timeout: float, reload: bool) -> dict:
        seen.append(job)
        settings = {"max_num_seqs": 7, "enable_lora": True, "enforce_eager": False}
        return {"engine": job.engine, "precision": job.precision, "settings": settings}

    monkeypatch.setattr(compare_engines, "run_engine", run_engine)
    monkeypatch.setattr(compare_engines, "_in_child", lambda *_: 1.0)
    jobs = [Job(name, TINY_THINKER) for name in ("unsloth-fast", "vllm", "vllm-same")]
    compare_engines.run(jobs)
    assert [job.options for job in seen] == [
        {},
        {},
        {"max_num_seqs": 7, "enable_lora": True},
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--engines", "vllm,other"],
        ["--precisions", "8bit"],
        ["--batch-sizes", "0"],
        ["--option", "max_num_seqs"],
    ],
)
def test_a_wrong_argument_ends_the_command(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_engines.main(["engines", *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
