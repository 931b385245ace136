import os
import warnings

import pytest
from pydantic import ValidationError

from helpers.internals.machine.settings import (
    VARIABLES,
    Settings,
    SettingsError,
    load_settings,
    read_env_file,
)

TOKEN = "hf_" + "x" * 34


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No variable of the developer's own, and no `.env` of theirs either."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env_file(tmp_path):
    def write(text):
        path = tmp_path / ".env"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load_from(env_file):
    def load(text):
        env_file(text)
        return load_settings()

    return load


def test_nothing_set_gives_the_defaults():
    assert load_settings() == Settings()


def test_file_is_read_and_typed(load_from):
    settings = load_from(
        "# comment\nMODEL_NAME=tiny-thinker\nLOAD_IN_4BIT=True\n"
        "MAX_SEQ_LENGTH=4096\nexport GPU_MEMORY_UTILIZATION='0.8'\n"
        f"LOG_LEVEL=DEBUG\nHF_TOKEN={TOKEN}\nDEVICE=cpu\n"
        "VLLM_CPU_KVCACHE_SPACE=3 # GiB\n"
    )
    assert settings == Settings(
        model_name="tiny-thinker",
        load_in_4bit=True,
        max_seq_length=4096,
        gpu_memory_utilization=0.8,
        log_level="debug",
        hf_token=TOKEN,
        device="cpu",
        vllm_cpu_kvcache_space=3,
    )


def test_file_is_found_from_a_folder_below(env_file, monkeypatch, tmp_path):
    env_file("MAX_SEQ_LENGTH=512")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load_settings().max_seq_length == 512


def test_environment_wins_over_file(load_from, monkeypatch):
    monkeypatch.setenv("MAX_SEQ_LENGTH", "1024")
    assert load_from("MAX_SEQ_LENGTH=512").max_seq_length == 1024


def test_the_file_is_read_once_and_the_environment_each_time(env_file, monkeypatch):
    env_file("MAX_SEQ_LENGTH=512\nDEVICE=cpu")
    assert load_settings().max_seq_length == 512
    env_file("MAX_SEQ_LENGTH=1024")
    assert load_settings().max_seq_length == 512
    monkeypatch.setenv("MAX_SEQ_LENGTH", "2048")
    settings = load_settings()
    assert (settings.max_seq_length, settings.device) == (2048, "cpu")
    monkeypatch.delenv("MAX_SEQ_LENGTH")
    assert load_settings().max_seq_length == 512
    read_env_file.cache_clear()
    assert load_settings().max_seq_length == 1024


def test_a_file_that_can_not_be_read_is_read_again_once_it_is_mended(env_file):
    env_file("MAX_SEQ_LENGTH")
    with pytest.raises(SettingsError):
        load_settings()
    env_file("MAX_SEQ_LENGTH=1024")
    assert load_settings().max_seq_length == 1024


def test_empty_value_counts_as_not_set(load_from, monkeypatch):
    monkeypatch.setenv("MAX_SEQ_LENGTH", "")
    settings = load_from("MAX_SEQ_LENGTH=512\nLOG_LEVEL=\nHF_TOKEN=")
    assert (settings.max_seq_length, settings.log_level) == (512, "error")
    assert settings.hf_token is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("off", False), ("YES", True), ("auto", None), ("false", False)],
)
def test_truth_values(load_from, text, value):
    assert load_from(f"LOAD_IN_4BIT={text}").load_in_4bit is value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("LOAD_IN_4BIT", "maybe", "should be a valid boolean"),
        ("MAX_SEQ_LENGTH", "lots", "should be a valid integer"),
        ("MAX_SEQ_LENGTH", "63", "greater than or equal to 64"),
        ("MAX_SEQ_LENGTH", "2048.5", "should be a valid integer"),
        ("GPU_MEMORY_UTILIZATION", "0", "greater than 0"),
        ("GPU_MEMORY_UTILIZATION", "80", "less than or equal to 1"),
        ("GPU_MEMORY_UTILIZATION", "nan", "less than or equal to 1"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("DEVICE", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("VLLM_CPU_KVCACHE_SPACE", "0", "greater than or equal to 1"),
    ],
)
def test_malformed_value_names_variable_value_and_what_is_allowed(
    load_from, monkeypatch, name, value, allowed
):
    with pytest.raises(SettingsError) as from_file:
        load_from(f'{name}="{value}"')
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as from_environment:
        load_settings()
    for error, source in ((from_file, ".env"), (from_environment, "the environment")):
        for part in (name, repr(value), allowed, source):
            assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("FOLDER=/data\nMODEL_NAME=${FOLDER}/qwen", "/data/qwen"),
        ("MODEL_NAME='${FOLDER:-/data}/qwen'", "/data/qwen"),
        ("MODEL_NAME=${SHELL_FOLDER}/qwen", "/mnt/qwen"),
        ("MODEL_NAME=/my models/qwen # mine", "/my models/qwen"),
        ('MODEL_NAME="~/my models"', "~/my models"),
    ],
)
def test_values_are_expanded_and_paths_may_have_spaces(
    load_from, monkeypatch, text, name
):
    monkeypatch.setenv("SHELL_FOLDER", "/mnt")
    monkeypatch.setenv("FOLDER", "")  # Restored afterwards.
    monkeypatch.delenv("FOLDER")
    assert load_from(text).model_name == name


def test_a_folder_in_the_file_counts_from_the_file(env_file, monkeypatch, tmp_path):
    env_file("MODEL_NAME='models/my own'")
    (tmp_path / "models/my own").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load_settings().model_name == str(tmp_path / "models/my own")
    monkeypatch.setenv("MODEL_NAME", "models/my own")  # This one is the shell's.
    assert load_settings().model_name == "models/my own"


def test_variables_of_other_libraries_reach_them(load_from, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/set/in/the/shell")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # Restored afterwards.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with warnings.catch_warnings(action="error"):
        load_from("HF_HOME=/mine\nCUDA_VISIBLE_DEVICES=1\nDEVICE=cpu\nEMPTY=")
    assert os.environ["HF_HOME"] == "/set/in/the/shell"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"DEVICE", "EMPTY"} & set(os.environ)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_SEQUENCE_LENGTH", "MAX_SEQ_LENGTH"),
        ("DEVISE", "DEVICE"),
        ("device", "DEVICE"),
    ],
)
def test_a_name_without_effect_is_warned_of(load_from, monkeypatch, name, meant):
    monkeypatch.setattr(os, "environ", {})
    with pytest.warns(UserWarning, match=f"{name} in .* no effect: write {meant} "):
        assert load_from(f"{name}=x") == Settings()


@pytest.mark.parametrize("text", ["None", "null", ""])
def test_what_is_no_token(load_from, monkeypatch, text):
    assert load_from(f"HF_TOKEN={text}").hf_token is None
    monkeypatch.setenv("HF_TOKEN", text)  # As os.environ["HF_TOKEN"] = str(token) does.
    settings = load_settings()
    assert settings.hf_token is None
    settings.apply()
    assert os.environ.get("HF_TOKEN", "") == ""


@pytest.mark.parametrize(
    "text", ["MAX_SEQ_LENGTH", f"HF_TOKEN='{TOKEN}", "=1", b"\xff"]
)
def test_unreadable_file_is_an_error_that_shows_no_content(env_file, text):
    file = env_file(text)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert TOKEN not in str(error.value) and str(file) in str(error.value)


def test_token_is_never_shown(load_from):
    settings = load_from(f"HF_TOKEN={TOKEN}")
    assert settings.hf_token.get_secret_value() == TOKEN
    assert TOKEN not in repr(settings) + str(settings)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().device = "cpu"


def test_apply_sets_what_the_engines_read(monkeypatch):
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "1"})
    Settings(hf_token=TOKEN, log_level="debug", vllm_cpu_kvcache_space=2).apply()
    assert os.environ == {
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_TOKEN": TOKEN,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "TRANSFORMERS_VERBOSITY": "debug",
        "TORCH_CPP_LOG_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    Settings(device="cpu").apply()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["HF_TOKEN"] == TOKEN  # Read from the environment.
