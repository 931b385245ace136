import pytest

from helpers.internals.engine import errors
from helpers.internals.engine.errors import ends_everything, explained
from helpers.internals.engine.exceptions import NotEnoughMemoryError
from helpers.internals.engine.plan import plan_load
from helpers.internals.machine.settings import Settings

QWEN_THINKING = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
PLAN = plan_load(QWEN_THINKING, "cuda", True, 2048)


def explain(error: Exception) -> Exception:
    with (
        pytest.raises(Exception) as caught,  # noqa: B017
        explained(PLAN, Settings()),
    ):
        raise error
    return caught.value


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
    error = ValueError("something else")
    assert explain(error) is error


def test_a_second_failure_is_not_explained_by_the_first() -> None:
    """A retry that the caller makes while it handles an out-of-memory error."""
    try:
        raise MemoryError("out of memory")
    except MemoryError:
        assert type(explain(ValueError("something else"))) is ValueError


@pytest.mark.parametrize("words", ["CUDA error", "CUDA out of memory", "MemoryError"])
def test_a_prompt_about_such_an_error_ends_nothing(words: str) -> None:
    assert not ends_everything(ValueError(f"the id {words!r} is an earlier prompt's."))
    assert ends_everything(RuntimeError(words))
