"""What is said of tensors that do not fit the model; the files are in test_hub."""

from pathlib import Path

import pytest
from child import run_child

from helpers.internals.engine.exceptions import ModelLoadError
from helpers.internals.engine.weights import require_files, warn_of_stretching
from helpers.models import TINY_THINKER_DIRECTORY

PROJECTION = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder: Path = tmp_path_factory.mktemp("models")
    return run_child("weights", str(folder))


@pytest.mark.parametrize("case", ["dict", "with_tied_head", "adapter-dict"])
def test_weights_that_fit_load_with_tied_embeddings(said: dict, case: str) -> None:
    assert said[case] == "nothing"


def test_a_missing_tensor_is_named_before_either_engine_loads(said: dict) -> None:
    for text in (said["without_projection"], said["of_own_class"], *said["loaded"]):
        assert text.startswith("ModelLoadError: ")
        assert f"Missing: {PROJECTION}; not used: none" in text


def test_a_tensor_of_another_shape_counts_as_missing(said: dict) -> None:
    assert f"Missing: {PROJECTION}; not used: none" in said["of_another_width"]


def test_the_names_of_a_compiled_model_are_explained(said: dict) -> None:
    assert said["compiled"].startswith("ModelLoadError: ")
    assert "not used: _orig_mod." in said["compiled"] and " more" in said["compiled"]


def test_a_tensor_that_nothing_uses_is_named(said: dict) -> None:
    assert "not used: model.layers.9.another.weight" in said["with_another"]


@pytest.mark.parametrize(
    "case", ["with_integers", "with_nan", "with_infinity", "with_nan_in_64_bits"]
)
def test_what_are_no_numbers_is_named(said: dict, case: str) -> None:
    assert said[case].startswith(f"ModelLoadError: {PROJECTION} in ")


def test_numbers_whose_sums_are_too_large_are_no_nan(said: dict) -> None:
    assert said["with_halves_of_large_sums"] == "nothing"


@pytest.mark.parametrize(
    "method", ["bitsandbytes", "gptq", "fp8", "compressed-tensors"]
)
def test_quantised_layers_fit_by_other_names_unless_one_is_missing(
    said: dict, method: str
) -> None:
    whole, less = said["quantised"][method]
    assert whole == "nothing"
    assert f"Missing: {PROJECTION}; not used: none" in less


def test_the_tensors_of_an_adapter_are_compared_too(said: dict) -> None:
    assert "1.mlp.up_proj.lora_B.default.weight" in said["adapter-without_lora_b"]
    assert "and 51 more" in said["adapter-without_prefix"]
    assert "holds NaN" in said["adapter-with_nan_in_lora"]


@pytest.mark.parametrize("case", ["of_rank_4", "of_no_rows"])
def test_an_adapter_of_another_shape_is_named(said: dict, case: str) -> None:
    assert said[f"adapter-{case}"].startswith("ModelLoadError: ")
    assert f"adapter-{case}: " in said[f"adapter-{case}"]
    assert "size mismatch" in said[f"adapter-{case}"]


def test_a_head_without_embeddings_is_refused_except_in_an_adapter(said: dict) -> None:
    assert "has only a head" in said["without_embeddings"]
    assert said["adapter-with_head"] == "nothing"


@pytest.mark.parametrize("case", ["shard", "config", "vocabulary"])
def test_what_cant_be_built_is_the_engines_unless_somebody_asks(
    said: dict, case: str
) -> None:
    lenient, strict = said["not built"][case]
    assert lenient == "nothing"
    assert strict.startswith("ModelLoadError: ") and case in strict


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}'])
def test_an_index_without_names_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r'index\.json has no "weight_map"'):
        require_files(tmp_path)


def test_a_context_that_unsloth_would_stretch_on_a_gpu_warns(recwarn) -> None:
    warn_of_stretching(TINY_THINKER_DIRECTORY, "tiny", 4096)
    assert not recwarn
    with pytest.warns(UserWarning, match="tiny knows 4,096 tokens"):
        warn_of_stretching(TINY_THINKER_DIRECTORY, "tiny", 16_384)
