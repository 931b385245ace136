import json
from pathlib import Path

import pytest

from helpers.models import TINY_THINKER, TINY_THINKER_DIRECTORY
from helpers.notebook import is_noise
from helpers.thinking import THINK_END_TOKEN_ID
from tools.random_model import HEAD_WORDS, SHAPES, main, make_random_model

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "layer_types": None,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model of each shape, with few and narrow layers."""
    folder = tmp_path_factory.mktemp("models")
    return {
        shape: make_random_model(folder / shape, shape, **SMALL) for shape in SHAPES
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_model_loads_and_generates(shape: str, models) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vocabulary = SHAPES[shape]["vocab_size"]
    norms = 2 * 128 + (2 * 64 if shape.startswith("qwen3") else 0)
    layer = 128 * 64 * (2 + 1 + 1 + 2) + 3 * 128 * 256 + norms
    model = AutoModelForCausalLM.from_pretrained(models[shape])
    tables = 1 if SHAPES[shape]["tie_word_embeddings"] else 2  # Of the vocabulary.
    assert model.num_parameters() == tables * vocabulary * 128 + 2 * layer + 128
    tokenizer = AutoTokenizer.from_pretrained(models[shape])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 15 + 27?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = prompt["input_ids"].shape[1]
    output = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8)[0, length:]
    assert len(output) == 8 and tokenizer.decode(output).strip()


def test_its_tokenizer_knows_every_id_and_has_qwen3s_markers(models) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models["qwen3-4b"] / "tokenizer.json"))
    size = SHAPES["qwen3-4b"]["vocab_size"]
    assert tokenizer.get_vocab_size() == size
    assert all(tokenizer.id_to_token(number) for number in range(size))
    assert tokenizer.token_to_id("</think>") == THINK_END_TOKEN_ID
    text = "What is 15 + 27?</think><|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids[-2:] == [THINK_END_TOKEN_ID, 151_645]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_its_card_says_that_it_is_noise_and_no_others_does(
    models, tmp_path: Path
) -> None:
    assert not is_noise(tmp_path)
    (tmp_path / "README.md").write_text("# A model with no random-weights tag")
    assert not is_noise(tmp_path)
    assert all(is_noise(directory) for directory in models.values())
    assert not is_noise(TINY_THINKER)
    assert not is_noise(TINY_THINKER_DIRECTORY)


def test_it_does_not_write_over_a_real_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not of random weights"):
        make_random_model(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_head_has_one_layer_of_its_models_sizes(models, tmp_path) -> None:
    from safetensors.torch import load_file

    model = models["qwen3-4b"]
    assert main([str(tmp_path / "head"), "--head-of", str(model)]) == 0
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["num_hidden_layers"] == 1 and config["draft_vocab_size"] == HEAD_WORDS
    head = load_file(tmp_path / "head" / "model.safetensors")
    layer = "model.layers.0."
    for name, tensor in load_file(next(model.glob("*.safetensors"))).items():
        place = name.replace(layer, "midlayer.")
        # A head's layer is Llama's, without norms in the attention.
        if place != name and not place.endswith(("q_norm.weight", "k_norm.weight")):
            size = list(tensor.shape)  # It reads the text and the hidden states.
            size[-1] *= 2 if place.endswith(("q_proj.weight", "k_proj.weight")) else 1
            size[-1] *= 2 if place.endswith("v_proj.weight") else 1
            assert list(head[place].shape) == size, place
    assert len(head["d2t"]) == HEAD_WORDS and head["fc.weight"].shape == (128, 384)
