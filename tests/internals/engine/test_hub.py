import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import fill_cache

from helpers.internals.engine.cpu import refuse_for_engine
from helpers.internals.engine.exceptions import ModelLoadError, ModelNotFoundError
from helpers.internals.engine.hub import ask_hub, find_folder
from helpers.internals.engine.plan import adapter_base, resolve_model_path
from helpers.internals.engine.weights import check_files
from helpers.models import (
    TINY_THINKER,
    TINY_THINKER_DIRECTORY,
    UnknownModelError,
    find_model,
)

QWEN_THINKING = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
LFS_POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, in the place of the user's."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B/", "Qwen/Qwen3-0.6B"),
        (" Qwen/Qwen3-0.6B\n", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        (QWEN_THINKING.split("/")[1], QWEN_THINKING),
        (f"https://huggingface.co/{QWEN_THINKING}", QWEN_THINKING),
        ("tiny-thinker/", str(TINY_THINKER_DIRECTORY)),
    ],
)
def test_names_become_paths(name: str, path: str) -> None:
    assert resolve_model_path(name) == path


def test_a_directory_is_its_own_path(tmp_path: Path) -> None:
    assert resolve_model_path(tmp_path) == str(tmp_path)
    assert resolve_model_path(f"{tmp_path}/") == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinythinker", "Did you mean tiny-thinker"),
        ("https://huggingface.co/datasets/a/b", "no supported model"),
        ("https://example.com/a/b", "no supported model"),
        ("a/b c", "no supported model"),
    ],
)
def test_a_name_that_is_nothing_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        resolve_model_path(name)


@pytest.mark.parametrize("name", ["./not-here", "/data/models/not-here", "~/not-here"])
def test_a_missing_directory_is_said_to_be_one(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no directory {name}"):
        resolve_model_path(name)


def test_a_model_is_here_once_its_weights_are_or_those_that_unsloth_takes(
    cache: Path,
) -> None:
    base = "unsloth/Ministral-3-3B-Reasoning-2512"
    assert not find_folder(base)
    fill_cache(cache, f"{base}-unsloth-bnb-4bit", TINY_THINKER_DIRECTORY)
    assert find_folder(base) and find_folder(f"{base}-unsloth-bnb-4bit")
    assert not find_folder("unsloth/another")


def test_a_model_with_a_part_missing_is_not_here(cache: Path) -> None:
    folder = fill_cache(cache, "some/model", TINY_THINKER_DIRECTORY)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    weights = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(weights)
    assert not find_folder("some/model")
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    assert find_folder("some/model")
    (folder / "tokenizer.json").unlink()
    assert not find_folder("some/model")


def test_a_folder_in_the_cache_is_known_as_its_model(cache: Path) -> None:
    spec = find_model(QWEN_THINKING)
    folder = fill_cache(cache, spec.path_16bit, TINY_THINKER_DIRECTORY)
    assert find_model(str(folder)) is spec
    assert find_model(str(TINY_THINKER_DIRECTORY)).name == TINY_THINKER
    assert find_model("some/model") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_THINKER_DIRECTORY, tmp_path / "model"))


def test_whole_files_pass(folder: Path) -> None:
    check_files(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    with pytest.raises(ModelLoadError, match=rf"{folder / name} .* git lfs pull"):
        check_files(folder)


@pytest.mark.parametrize("size", [0, 4, 100, 100_000])
def test_weights_that_are_cut_short_are_named(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match=f"{weights} is cut short. Copy"):
        check_files(folder)


def test_weights_that_are_zeros_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ModelLoadError, match=f"{weights} is cut short. Copy"):
        check_files(folder)


def test_weights_that_are_cut_short_in_the_cache_are_to_be_fetched_again(
    cache: Path,
) -> None:
    weights = fill_cache(cache, "a/b", TINY_THINKER_DIRECTORY) / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(ModelLoadError, match="`hf download a/b model.safetensors"):
        check_files(weights.parent)


def test_a_missing_shard_of_an_index_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(ModelLoadError, match=r"model-2\.safetensors is missing, .*ind"):
        check_files(folder)


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "elsewhere")
    with pytest.raises(ModelLoadError, match="is a link to a file that is not there"):
        check_files(folder)


def test_an_index_of_bin_files_beside_safetensors_does_not_matter(
    folder: Path,
) -> None:
    index = folder / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    check_files(folder)


@pytest.mark.parametrize("text", ["\ufeff{}", "{", "[]"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_config_that_is_not_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, "utf-8")
    with pytest.raises(ModelLoadError, match=rf"/{name} .*JSON"):
        check_files(folder)


@pytest.mark.parametrize("name", ["model-00001-of-00001", "backup"])
def test_two_sets_of_weights_are_refused(folder: Path, name: str) -> None:
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder / "consolidated.safetensors")  # Mistral's own format.
    check_files(folder)
    shutil.copy(weights, folder / f"{name}.safetensors")
    with pytest.raises(ModelLoadError, match=f"model.safetensors and {name}"):
        check_files(folder)


def test_a_folder_without_a_tokenizer_says_how_to_save_one(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.save_pretrained\("):
        check_files(folder)


def test_bitsandbytes_on_vllms_cpu_engine_is_refused_with_what_to_do(
    folder: Path,
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="16 bits .*or fast_inference=False"):
        refuse_for_engine(str(folder))


def test_an_adapter_without_its_rank_is_refused_all_the_same(tmp_path: Path) -> None:
    config = '{"base_model_name_or_path": "tiny-thinker"}'
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=r"max_lora_rank=\(its rank\)"):
        refuse_for_engine(str(tmp_path))


def test_a_gguf_file_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("model.Q4_K_M.gguf", "MODEL.GGUF"):
        with pytest.raises(ModelLoadError, match=r"llama\.cpp"):
            resolve_model_path(tmp_path / name)


def test_modelscope_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSLOTH_USE_MODELSCOPE", "1")
    with pytest.raises(ModelLoadError, match="modelscope download a/b"):
        ask_hub("a/b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "names no model"),
        ('{"base_model_name_or_path": null}', "names no model"),
        ('{"base_model_name_or_path": 5}', "names no model"),
        ('{"base_model_name_or_path": "/elsewhere/base"}', "adapter .*no directory"),
        ('{"base_model_name', "can't be read as JSON"),
    ],
)
def test_an_odd_adapter_is_refused_in_words(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        adapter_base(str(tmp_path))


def test_a_folder_without_weights_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no weights"):
        check_files(tmp_path)


def test_an_adapter_names_its_model(tmp_path: Path) -> None:
    config = '{"base_model_name_or_path": "tiny-thinker"}'
    (tmp_path / "adapter_config.json").write_text(config)
    assert adapter_base(str(tmp_path)) == str(TINY_THINKER_DIRECTORY)
    assert adapter_base(str(TINY_THINKER_DIRECTORY)) is None
    assert adapter_base("some/model") is None
