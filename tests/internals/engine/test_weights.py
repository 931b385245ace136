"""What a load says of weights that do not fit the model; the files are in test_hub."""

from pathlib import Path

import pytest
from child import run_child

PROJECTION = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder: Path = tmp_path_factory.mktemp("models")
    return run_child("weights", str(folder))


def test_weights_that_fit_load_with_tied_embeddings(said: dict) -> None:
    assert said["dict"] == "nothing"


@pytest.mark.parametrize("case", ["without_projection", "vllm"])
def test_a_missing_tensor_is_named_by_both_engines(said: dict, case: str) -> None:
    assert said[case].startswith("ModelLoadError: ")
    assert f"Missing: {PROJECTION}; not used: none" in said[case]


def test_the_names_of_a_compiled_model_are_explained(said: dict) -> None:
    assert said["compiled"].startswith("ModelLoadError: ")
    assert "not used: _orig_mod." in said["compiled"] and " more" in said["compiled"]


def test_a_tensor_that_nothing_uses_is_named(said: dict) -> None:
    assert "not used: model.layers.9.another.weight" in said["with_another"]
