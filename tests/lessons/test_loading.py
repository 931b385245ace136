import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import run_child
from hub_server import WRONG_TOKEN, Hub, fill_cache, hub_server

from helpers import loading
from helpers.internals.engine import stop as interrupts
from helpers.internals.engine.exceptions import ModelLoadError
from helpers.internals.engine.plan import plan_load
from helpers.internals.engine.stop import finishing
from helpers.models import TINY_THINKER_DIRECTORY

MISSPELT = "unsloth/Qwen3-4B-Thinkin"
CLOSED_PORT = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        server.folders["some/model"] = TINY_THINKER_DIRECTORY
        yield server


@pytest.fixture(scope="module")
def fast(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model in the hub's cache, loaded while the hub listens; and used."""
    cache = tmp_path_factory.mktemp("cache")
    fill_cache(cache, "cached/model", TINY_THINKER_DIRECTORY)
    variables = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub.address}
    before = len(hub.requests)
    seen = run_child("fast_inference", "cached/model", CI="true", **variables)
    return {**seen, "requests": hub.requests[before:]}


def test_what_is_in_the_cache_is_loaded_without_asking_the_hub(fast: dict) -> None:
    assert fast["requests"] == []


def test_fast_inference_without_a_gpu_is_the_real_vllm(fast: dict) -> None:
    assert fast["engine"] == "vllm"
    assert fast["unsloth"]


def test_both_engines_give_the_same_greedy_tokens(fast: dict) -> None:
    assert fast["same_as_generate"]


def test_loading_and_generating_print_nothing(fast: dict) -> None:
    assert fast["stdout"] == []
    assert fast["stderr"] == ""


def test_no_call_of_the_load_keeps_the_model(fast: dict) -> None:
    """vLLM keeps the frames of its own load, and with them those of its callers."""
    assert fast["frames"] == []


def test_an_interrupt_comes_through_wherever_it_falls(fast: dict) -> None:
    assert fast["interrupted"] == [True] * 4
    assert fast["handler_restored"]


def test_after_an_interrupt_the_next_call_gives_its_own_outputs(fast: dict) -> None:
    assert fast["after"] == [True] * 5


def test_many_seeded_prompts_fit_no_single_step(fast: dict) -> None:
    assert fast["seeded"] * 100 > fast["step_tokens"]


def test_a_prompt_past_the_context_is_vllms_own_error(fast: dict) -> None:
    assert "512" in fast["too_long"][1]


def test_under_ci_outputs_that_share_memory_stay_a_warning(fast: dict) -> None:
    """Unsloth's compiled code makes some on a GPU, and every CI runner sets CI."""
    assert fast["aliasing_is_an_error"] == [False, False]


def test_the_extension_is_hidden_exactly_where_vllm_would_not_load_it(
    fast: dict,
) -> None:
    assert fast["blocked"] == fast["needs_block"]


def test_the_cpu_engine_takes_no_adapters_unless_asked(fast: dict) -> None:
    assert not fast["takes_adapters"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two adapters for a model in the hub's cache, with no hub."""
    folder = tmp_path_factory.mktemp("adapters")
    cache = tmp_path_factory.mktemp("cache")
    fill_cache(cache, "cached/model", TINY_THINKER_DIRECTORY)
    paths = [str(folder / name) for name in ("first", "second")]
    variables = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return run_child("adapters", "cached/model", *paths, **variables)


def test_a_model_that_is_not_here_is_named_without_a_hub(adapters: dict) -> None:
    assert "missing/model is not on this machine" in adapters["not_here"]
    assert "HF_HUB_OFFLINE forbids to ask the hub" in adapters["not_here"]


def test_the_cpu_engine_serves_two_adapters_in_one_batch(adapters: dict) -> None:
    assert adapters["same_as_generate"]
    assert adapters["none_is_the_base"]
    assert adapters["different"] == 3
    assert adapters["config"] == [2, 64]
    assert adapters["released"] == [0, []]
    assert adapters["stdout"] == []


@pytest.mark.parametrize("which", [0, 1])
def test_the_engine_gives_each_token_the_probability_that_the_adapter_gives(
    adapters: dict, which: int
) -> None:
    """The proof of 08: who has the adapter agrees on every token, the base does not."""
    gaps = adapters["gaps"][which]
    assert gaps["adapter"] < 1e-3
    assert gaps["merged"] < 1e-3
    assert gaps["base"] > 1


def test_arguments_of_vllms_alone_reach_the_engine(adapters: dict) -> None:
    assert adapters["cache"] == [64, 48]


def test_the_engine_tells_adapters_apart_by_their_numbers(adapters: dict) -> None:
    assert adapters["goes_by_number"]


def test_an_adapter_alone_is_refused_with_what_to_pass(adapters: dict) -> None:
    assert (
        "Load its model with fast_inference=True and max_lora_rank=8"
        in (adapters["refused"])
    )
    assert "(cached/model)" in adapters["refused"]
    assert "lora_request=LoRARequest" in adapters["refused"]


def write_broken(folder: Path, weights: bytes) -> str:
    folder.mkdir()
    for file in TINY_THINKER_DIRECTORY.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


@pytest.fixture(scope="module")
def standard(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("models")
    fast, nothing = {"fast_inference": True}, {}
    cases = [
        ["download", "some/model", nothing, nothing],
        ["offline", "unsloth/not-here", {"local_files_only": True}, nothing],
        ["misspelt", MISSPELT, nothing, nothing],
        ["gated", "gated/model", nothing, nothing],
        ["busy", "busy/model", nothing, nothing],
        ["down", "down/model", nothing, nothing],
        ["forbidden", "forbidden/model", nothing, nothing],
        ["revision", "revised/model", {"revision": "v2"}, nothing],
        ["token", "some/other", nothing, {"HF_TOKEN": WRONG_TOKEN}],
        ["dead proxy", "some/other", nothing, {"HTTP_PROXY": CLOSED_PORT}],
        ["malformed proxy", "some/other", nothing, {"HTTP_PROXY": "htp://x"}],
        ["refusing proxy", "some/other", nothing, {"HTTP_PROXY": hub.address}],
        ["cut short", write_broken(folder / "cut", b"1234"), nothing, nothing],
        ["context", "tiny-thinker", fast | {"max_seq_length": 8192}, nothing],
        ["kv", "tiny-thinker", fast, nothing],
        ["no vllm", "tiny-thinker", fast, nothing],
    ]
    return run_child(
        "standard_inference",
        json.dumps(cases),
        HF_ENDPOINT=hub.address,
        HF_HUB_CACHE=str(tmp_path_factory.mktemp("cache")),
        # More KV cache than any test machine has, so that loading the engine fails.
        VLLM_CPU_KVCACHE_SPACE="100000",
    )


def test_standard_inference_is_unsloths_own_with_4bit_weights(standard: dict) -> None:
    assert standard["new"] == 8
    assert standard["four_bit"] == "Linear4bit"
    assert not standard["engine"]


def test_a_response_streams_from_generate_as_well(standard: dict) -> None:
    assert standard["live"] == standard["parsed"]
    assert (standard["live"][1] or standard["live"][0]) in standard["printed"]


def test_only_a_download_prints_something(standard: dict) -> None:
    assert standard["stdout"][0].startswith("Downloading some/model, once")
    assert all(line.startswith("Downloading ") for line in standard["stdout"])


@pytest.mark.parametrize(
    ("case", "kind", "messages"),
    [
        ("download", "nothing", []),
        ("offline", "ModelNotCachedError", ["unsloth/not-here is not on this machine"]),
        ("misspelt", "ModelNotFoundError", ["Did you mean unsloth/Qwen3-4B-Thinking"]),
        (
            "gated",
            "GatedModelError",
            ["terms on https://huggingface.co/gated/model", "HF_TOKEN"],
        ),
        ("busy", "ModelNotCachedError", ["429", "TROUBLESHOOTING"]),
        ("down", "ModelNotCachedError", ["503"]),
        ("forbidden", "ModelNotCachedError", ["403"]),
        ("revision", "ModelNotFoundError", ["Revision Not Found"]),
        ("token", "ModelNotCachedError", ["401", "Invalid credentials"]),
        ("dead proxy", "ModelNotCachedError", ["refused"]),
        ("malformed proxy", "ValueError", ["htp"]),
        ("refusing proxy", "ModelNotCachedError", ["407"]),
        ("cut short", "ModelLoadError", ["model.safetensors is cut short"]),
        ("context", "ValidationError", ["8192", "4096"]),
        ("kv", "NotEnoughMemoryError", ["VLLM_CPU_KVCACHE_SPACE (100000 GiB)"]),
        ("no vllm", "EngineUnavailableError", ["not installed"]),
    ],
)
def test_a_load_that_fails_says_what_to_do(
    standard: dict, case: str, kind: str, messages: list[str]
) -> None:
    found, said = standard["errors"][case]
    assert found == kind, said
    for message in messages:
        assert message in said


@pytest.fixture(scope="module")
def transformers_first() -> dict:
    return run_child("import_order", LOG_LEVEL="debug")


def test_importing_transformers_first_is_warned_of_once(
    transformers_first: dict,
) -> None:
    assert len(transformers_first["messages"]) == 1
    assert "transformers" in transformers_first["messages"][0]
    assert transformers_first["same"] and transformers_first["unsloth"]


def test_log_level_debug_brings_the_engines_output_back(
    transformers_first: dict,
) -> None:
    assert "Unsloth" in "".join(transformers_first["stdout"])


@pytest.fixture(scope="module")
def interrupted() -> dict:
    return run_child("interrupted")


@pytest.mark.parametrize(
    ("moment", "what"),
    [
        ("unsloth_zoo", "the import of unsloth"),
        ("vllm.entrypoints.llm", "the load of tiny-thinker"),
        ("vllm.v1.worker.cpu_worker", "the load of tiny-thinker"),
    ],
)
def test_after_an_import_or_load_was_cut_off_the_next_says_to_restart(
    interrupted: dict, moment: str, what: str
) -> None:
    (kind, _), *later = interrupted[moment]
    assert kind == "KeyboardInterrupt"
    for kind, message in later:
        assert kind == "ModelLoadError"
        assert message.startswith(f"{what} did not finish")
        assert "Restart the kernel" in message


@pytest.mark.parametrize("raised", [None, ImportError])
def test_an_interrupt_that_a_library_swallows_comes_through(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception] | None
) -> None:
    monkeypatch.setattr(interrupts, "_unfinished", [])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), finishing("a load"):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if raised:
            raise raised
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ModelLoadError, match="a load did not finish"), finishing("b"):
        pass


def test_only_fast_language_model_is_lazy() -> None:
    assert "unsloth" not in sys.modules
    with pytest.raises(AttributeError, match="no attribute 'FastModel'"):
        loading.FastModel  # noqa: B018


def test_a_load_of_a_folder_is_announced_without_its_place(tmp_path: Path) -> None:
    plan = plan_load(tmp_path, "cpu", False, None)
    assert (plan.name, plan.path) == (tmp_path.name, str(tmp_path))
    assert plan_load("Qwen/Qwen3-0.6B", "cpu", False, 64).name == "Qwen/Qwen3-0.6B"
