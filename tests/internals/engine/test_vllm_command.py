"""The words of vLLM's command; tests/lessons/test_serving.py runs them."""

import json
from pathlib import Path

import pytest

from helpers.internals.engine.vllm_command import serve_command
from helpers.internals.machine.settings import Settings

GPU = {"device": "cuda", "gpu_memory_utilization": 0.5, "max_seq_length": 512}


def words(model: str | Path, in_4bit: bool = True, **options: object) -> list[str]:
    command = serve_command(model, Settings(**GPU, load_in_4bit=in_4bit), **options)
    return command[command.index("serve") + 1 :]


def folder_with(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_server_on_a_gpu_quantises_as_unsloth_does(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, model_type="qwen3")
    flags = ["--max-model-len", "512", "--gpu-memory-utilization", "0.5"]
    assert words(folder, in_4bit=False) == [str(folder), *flags]
    quantised = [*flags, "--quantization", "bitsandbytes"]
    assert words(folder) == [str(folder), *quantised]
    assert words(folder, quantization="fp8")[-1] == "fp8"
    assert words("Qwen/Qwen3-4B") == ["Qwen/Qwen3-4B", *quantised]


@pytest.mark.parametrize(
    "name",
    ["unsloth/Qwen3-4B-unsloth-bnb-4bit", "Qwen/Qwen3-4B-FP8", "org/Model-AWQ"],
)
def test_it_leaves_weights_that_are_quantised(name: str, tmp_path: Path) -> None:
    assert "--quantization" not in words(name)
    folder = folder_with(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "--quantization" not in words(folder)
