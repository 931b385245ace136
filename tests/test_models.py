import json
import struct
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from helpers.models import (
    MODELS,
    TINY_THINKER_DIRECTORY,
    UnknownModelError,
    estimate_memory,
    get_model,
    nearest_models,
)

QWEN_THINKING = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
HUB_PATHS = [
    QWEN_THINKING,
    "unsloth/Ministral-3-3B-Reasoning-2512",
    "unsloth/Qwen3-4B-unsloth-bnb-4bit",
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
]


def test_the_supported_models_are_the_embedded_one_and_four_of_the_hub() -> None:
    assert list(MODELS) == ["tiny-thinker", *HUB_PATHS]
    assert all(MODELS[path].path == path for path in HUB_PATHS)


def test_the_embedded_model_is_a_directory_of_this_package() -> None:
    spec = get_model("tiny-thinker")
    assert spec.embedded
    assert spec.path == str(TINY_THINKER_DIRECTORY)
    assert (spec.think_start, spec.think_end) == ("<think>", "</think>")


def test_the_table_agrees_with_the_files_of_the_embedded_model() -> None:
    if not (TINY_THINKER_DIRECTORY / "model.safetensors").is_file():
        pytest.skip("the embedded model has not been trained in this checkout")
    spec = get_model("tiny-thinker")
    config = json.loads((TINY_THINKER_DIRECTORY / "config.json").read_text())
    with (TINY_THINKER_DIRECTORY / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = [value for key, value in header.items() if key != "__metadata__"]
    end = max(tensor["data_offsets"][1] for tensor in tensors)
    assert spec.parameters * spec.bytes_per_value == end
    assert spec.layers == config["num_hidden_layers"]
    assert spec.kv_heads == config["num_key_value_heads"]
    assert spec.head_dim == config["head_dim"]
    assert spec.context_length == config["max_position_embeddings"]
    assert spec.embedding_parameters == config["vocab_size"] * config["hidden_size"]


@pytest.mark.parametrize(
    "written", [QWEN_THINKING, QWEN_THINKING.upper(), f" {QWEN_THINKING.split('/')[1]}"]
)
def test_a_model_is_found_however_its_name_is_written(written: str) -> None:
    assert get_model(written).name == QWEN_THINKING


def test_an_unknown_name_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(KeyError) as caught:
        get_model("unsloth/Qwen3-4B-Thinking-2508-unsloth-bnb-4bit")
    assert isinstance(caught.value, UnknownModelError)
    assert f"Did you mean {QWEN_THINKING}" in str(caught.value)


def test_part_of_a_name_is_enough_for_a_guess() -> None:
    assert nearest_models("ministral") == ["unsloth/Ministral-3-3B-Reasoning-2512"]


def test_a_name_like_nothing_gets_no_guess() -> None:
    assert nearest_models("zzzz") == []
    with pytest.raises(UnknownModelError, match="Supported: tiny-thinker, "):
        get_model("zzzz")


def test_kv_cache_per_token_is_a_key_and_a_value_in_every_layer() -> None:
    assert get_model(QWEN_THINKING).kv_bytes_per_token == 2 * 36 * 8 * 128 * 2


def test_the_estimate_grows_by_the_kv_cache_alone() -> None:
    one = estimate_memory(QWEN_THINKING, 2048, 1, True)
    eight = estimate_memory(QWEN_THINKING, 2048, 8, True)
    assert one.kv_cache_mib == 288
    assert eight.total_mib - one.total_mib == 7 * 288


@pytest.mark.parametrize("name", HUB_PATHS)
def test_four_bits_save_about_half_of_the_16bit_weights_or_more(
    name: str,
) -> None:
    weights = MODELS[name].weights_gb
    assert 0.25 < weights["4bit"] / weights["16bit"] < 0.55


def test_what_fits_is_said_with_both_numbers() -> None:
    estimate = estimate_memory(QWEN_THINKING, 2048, 1, True)
    assert estimate.fits(estimate.total_mib)
    assert not estimate.fits(estimate.total_mib - 1)
    assert estimate.advice(8192).startswith("Fits: ")


def test_advice_turns_to_4bit_first() -> None:
    estimate = estimate_memory(QWEN_THINKING, 2048, 1, load_in_4bit=False)
    assert "LOAD_IN_4BIT=true" in estimate.advice(8192)


@pytest.mark.parametrize("available", [5600, 6000, 7000, 9000, 15_000])
@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_following_the_advice_makes_it_fit(available: int, concurrency: int) -> None:
    estimate = estimate_memory(QWEN_THINKING, 100_000, concurrency, True)
    advice = estimate.advice(available)
    assert advice.startswith("Does not fit")
    words = advice.rstrip(".").split()
    length = int(words[words.index("MAX_SEQ_LENGTH") + 2])
    if "concurrency" in words:
        concurrency = int(words[words.index("concurrency") + 2])
    assert length >= 256
    assert estimate_memory(QWEN_THINKING, length, concurrency, True).fits(available)


def test_advice_for_a_hopeless_case_is_another_model() -> None:
    estimate = estimate_memory(QWEN_THINKING, 2048, 1, True)
    assert "MODEL_NAME=tiny-thinker" in estimate.advice(2000)


@pytest.mark.parametrize(("length", "concurrency"), [(0, 1), (2048, 0), (262_145, 1)])
def test_impossible_lengths_are_refused(length: int, concurrency: int) -> None:
    with pytest.raises(ValueError):
        estimate_memory(QWEN_THINKING, length, concurrency)


def test_specs_can_not_be_changed() -> None:
    spec = get_model("tiny-thinker")
    with pytest.raises(FrozenInstanceError):
        spec.path = "elsewhere"
    with pytest.raises(TypeError):
        spec.sampling["temperature"] = 0


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, helpers.models, helpers.sampling; "
        "print([m for m in ('torch', 'transformers', 'unsloth', 'vllm') "
        "if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
