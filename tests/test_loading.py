import contextlib
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from child import run_child
from nbclient import NotebookClient
from tiny_qwen3 import model_for_tests

from helpers import engine, errors, interrupts, loading
from helpers.engine import extension_is_unusable
from helpers.errors import (
    GatedModelError,
    ModelLoadError,
    ModelNotCachedError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)
from helpers.interrupts import finishing, interruptible
from helpers.loading import is_here, resolve_model_path
from helpers.models import UnknownModelError
from helpers.settings import Settings

CPU_BUILD = ["_C.abi3.so", "_C_AVX2.abi3.so", "_C_AVX512.abi3.so"]
QWEN_THINKING = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_for_tests(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def fast(model_directory: str) -> dict:
    return run_child("fast_inference", model_directory, CI="true")


def test_fast_inference_without_a_gpu_is_the_real_vllm(fast: dict) -> None:
    assert fast["engine"] == "vllm"
    assert fast["unsloth"]


def test_both_engines_give_the_same_greedy_tokens(fast: dict) -> None:
    assert fast["same_as_generate"]


def test_loading_and_generating_print_nothing(fast: dict) -> None:
    assert fast["stdout"] == []
    assert fast["stderr"] == ""


def test_an_interrupt_comes_through_wherever_it_falls(fast: dict) -> None:
    assert fast["interrupted"] == [True] * 4
    assert fast["handler_restored"]


def test_after_an_interrupt_the_next_call_gives_its_own_outputs(fast: dict) -> None:
    assert fast["after"] == [True] * 5


def test_running_out_of_memory_in_generate_says_what_to_lower(fast: dict) -> None:
    kind, message = fast["out_of_memory"]
    assert kind == "NotEnoughMemoryError"
    assert "100000000000 completions" in message
    assert "MiB are free" in message and "max_new_tokens" in message


def test_many_seeded_prompts_fit_no_single_step(fast: dict) -> None:
    assert fast["seeded"] * 100 > engine.STEP_TOKENS


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


def test_the_cpu_engine_serves_two_adapters_in_one_batch(
    model_directory: str, tmp_path: Path
) -> None:
    seen = run_child(
        "adapters", model_directory, str(tmp_path / "first"), str(tmp_path / "second")
    )
    assert seen["same_as_generate"]
    assert seen["none_is_the_base"]
    assert seen["different"] == 3
    assert seen["config"] == [2, 64]
    assert seen["released"] == [0, []]
    assert seen["stdout"] == [] and seen["stderr"] == ""


@pytest.fixture(scope="module")
def standard(model_directory: str) -> dict:
    # More KV cache than any test machine has, so that loading the engine fails.
    return run_child(
        "standard_inference", model_directory, VLLM_CPU_KVCACHE_SPACE="100000"
    )


def test_standard_inference_is_unsloths_own_with_4bit_weights(standard: dict) -> None:
    assert standard["new"] == 8
    assert standard["four_bit"] == "Linear4bit"
    assert not standard["engine"]
    assert standard["stdout"] == []


def test_offline_a_model_that_is_not_cached_fails_without_a_word_of_download(
    standard: dict,
) -> None:
    kind, message = standard["errors"]["offline"]
    assert kind == "ModelNotCachedError"
    assert "unsloth/not-here is not on this machine" in message
    assert standard["stdout"] == []


def test_too_large_a_kv_cache_names_the_variable_and_its_value(standard: dict) -> None:
    kind, message = standard["errors"]["kv"]
    assert kind == "NotEnoughMemoryError"
    assert "VLLM_CPU_KVCACHE_SPACE (100000 GiB)" in message


def test_a_missing_vllm_is_said_before_anything_is_loaded(standard: dict) -> None:
    kind, message = standard["errors"]["vllm"]
    assert kind == "EngineUnavailableError"
    assert "not installed" in message


@pytest.fixture(scope="module")
def transformers_first() -> dict:
    return run_child("import_order", LOG_LEVEL="debug")


def test_importing_transformers_first_is_warned_of_once(
    transformers_first: dict,
) -> None:
    assert len(transformers_first["messages"]) == 1
    assert "transformers" in transformers_first["messages"][0]
    assert transformers_first["own_line"] == [True]  # The reader's, not ours.
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
        ("unsloth_zoo.cpu.loader", "the import of unsloth"),
        ("unsloth_zoo", "the import of unsloth"),  # By the reader's own line.
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
    monkeypatch.setattr(interrupts, "_unfinished", "")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), finishing("a load"):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if raised:
            raise raised
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ModelLoadError, match="a load did not finish"), finishing("b"):
        pass


def test_a_quiet_load_shows_no_progress_bar_in_a_notebook() -> None:
    code = """
from IPython.display import display
from helpers.quiet import quiet
from helpers.settings import Settings
with quiet(Settings()):
    display("a bar")
display("shown")
"""
    cell = nbformat.v4.new_code_cell(code)
    NotebookClient(nbformat.v4.new_notebook(cells=[cell])).execute()
    assert [output.data["text/plain"] for output in cell.outputs] == ["'shown'"]


def test_only_fast_language_model_is_lazy() -> None:
    assert "unsloth" not in sys.modules
    with pytest.raises(AttributeError, match="no attribute 'FastModel'"):
        loading.FastModel  # noqa: B018


@pytest.mark.parametrize(
    ("files", "flags", "unusable"),
    [
        (CPU_BUILD, "avx2", True),
        (CPU_BUILD, "avx2 avx512f", True),
        (CPU_BUILD, "avx2 avx512f avx512_bf16", False),
        (["_C.abi3.so"], "avx2", False),  # CUDA: the GPU's kernels are in it.
        ([], "avx2", False),
    ],
)
def test_which_extension_a_cpu_can_not_run(
    files: list[str], flags: str, unusable: bool
) -> None:
    cpuinfo = f"processor : 0\nflags\t\t: fpu {flags} sse\nbugs : none\n"
    assert extension_is_unusable(files, cpuinfo) is unusable


def test_names_become_paths(tmp_path: Path) -> None:
    assert resolve_model_path(tmp_path) == str(tmp_path)
    assert resolve_model_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve_model_path(QWEN_THINKING.split("/")[1]) == QWEN_THINKING


def test_a_name_that_is_nothing_gets_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean tiny-thinker"):
        resolve_model_path("tinythinker")


@pytest.mark.parametrize("name", ["./not-here", "/data/models/not-here", "~/not-here"])
def test_a_missing_directory_is_said_to_be_one(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no directory {name}"):
        resolve_model_path(name)


def test_vllm_loads_the_weights_that_unsloth_takes_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Unsloth:
        @staticmethod
        def from_pretrained(path: str, *args: object, **kwargs: object) -> tuple:
            seen.append((path, kwargs))
            return SimpleNamespace(), None

    monkeypatch.setattr(loading, "is_here", lambda path: True)
    monkeypatch.setattr(loading, "require_vllm", lambda in_4bit: None)
    monkeypatch.setattr(
        loading, "load_cpu_engine", lambda path, *args: seen.append((path, args[-1]))
    )
    loading._from_pretrained(
        Unsloth, False, QWEN_THINKING, fast_inference=True, revision="abc"
    )
    base = QWEN_THINKING.removesuffix("-unsloth-bnb-4bit")
    assert [path for path, _ in seen] == [base, base]
    assert [arguments["revision"] for _, arguments in seen] == ["abc", "abc"]


def test_a_second_failure_is_not_explained_by_the_first() -> None:
    """A retry that the caller makes while it handles an out-of-memory error."""
    errors = [MemoryError("out of memory"), KeyboardInterrupt()]

    def fail(prompts: list, use_tqdm: bool) -> None:
        raise errors.pop(0)

    states = SimpleNamespace(request_states={})
    core = SimpleNamespace(
        step=str, output_processor=states, abort_request=lambda ids, internal: None
    )
    generate = interruptible(SimpleNamespace(llm_engine=core, generate=fail, chat=fail))
    try:
        generate(["one"])
    except NotEnoughMemoryError as error:
        assert "lower VLLM_CPU_KVCACHE_SPACE" in str(error)
        with pytest.raises(KeyboardInterrupt):
            generate(["one"])
    assert errors == []


def test_a_missing_embedded_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading.Path, "is_dir", lambda path: False)
    with pytest.raises(ModelNotFoundError, match=r"tools\.tiny_thinker\.train"):
        resolve_model_path("tiny-thinker")


def test_a_model_is_here_once_its_weights_are_or_those_that_unsloth_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached: set[str] = set()
    monkeypatch.setattr(loading, "_is_cached", cached.__contains__)
    base = "unsloth/Ministral-3-3B-Reasoning-2512"
    assert not is_here(base)
    cached.add(f"{base}-unsloth-bnb-4bit")
    assert is_here(base) and is_here(f"{base}-unsloth-bnb-4bit")
    assert not is_here("unsloth/another")


def explain(error: Exception, path: str = QWEN_THINKING) -> Exception | None:
    chain = errors.causes(error, handled=None)
    return errors.explain_load(chain, path, 2048, True, Settings())


def hub_error(name: str, message: str) -> Exception:
    """An error of huggingface_hub as transformers passes it on."""
    import httpx
    from huggingface_hub import errors

    request = httpx.Request("GET", "https://huggingface.co")
    kind = getattr(errors, name)
    try:
        try:
            if issubclass(kind, errors.HfHubHTTPError):
                raise kind(message, response=httpx.Response(401, request=request))
            raise kind(message)
        except Exception as cause:
            raise OSError("somewhere in transformers") from cause
    except OSError as error:
        return error


def test_a_gated_model_names_the_page_and_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    known = explain(hub_error("GatedRepoError", "403"), "meta-llama/Llama-3.2-3B")
    assert isinstance(known, GatedModelError)
    assert "https://huggingface.co/meta-llama/Llama-3.2-3B" in str(known)
    assert "HF_TOKEN" in str(known)


def test_a_model_that_the_hub_does_not_know_gets_the_nearest() -> None:
    known = explain(hub_error("RepositoryNotFoundError", "404"), "unsloth/Qwen3-4B-X")
    assert isinstance(known, ModelNotFoundError)
    assert "Did you mean unsloth/Qwen3-4B-unsloth-bnb-4bit" in str(known)


def test_no_network_and_not_cached_offers_the_embedded_model() -> None:
    known = explain(hub_error("LocalEntryNotFoundError", "offline"))
    assert isinstance(known, ModelNotCachedError)
    assert "MODEL_NAME=tiny-thinker" in str(known)


def test_memory_errors_carry_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    known = explain(ValueError("No available memory for the cache blocks."))
    assert "Fits" not in str(known)
    monkeypatch.setattr(errors, "free_memory_mib", lambda: 4000)
    known = explain(ValueError("No available memory for the cache blocks."))
    assert isinstance(known, NotEnoughMemoryError)
    assert "MiB needed" in str(known)
    assert "MAX_SEQ_LENGTH (2048)" in str(known)


def test_a_cache_that_is_too_small_is_to_be_raised() -> None:
    known = explain(ValueError("1 GiB KV cache is needed. Try increasing the memory."))
    assert "Raise VLLM_CPU_KVCACHE_SPACE" in str(known)


def test_an_error_of_unknown_cause_is_left_as_it_is() -> None:
    assert explain(ValueError("something else")) is None
