"""A batch on the real engine: in order, parsed, and unharmed by its bad prompts."""

from types import SimpleNamespace

import pyarrow
import pytest
from child import run_child

from helpers.batch import BatchResult, run_batch
from helpers.models import MODELS, TINY_THINKER
from helpers.thinking import INCOMPLETE_HINT

ROOM = 512  # Tokens that the engine is loaded for.


@pytest.fixture(scope="module")
def child() -> dict:
    """What happened in one Python that loads the engine once for all tests."""
    result = run_child("batch")
    assert result["stderr"] == "" and result["stdout"] == []
    return result


def without_place(rows: list[dict]) -> list[dict]:
    place = {"index", "prompt"}
    return [{k: v for k, v in row.items() if k not in place} for row in rows]


def test_results_are_those_of_the_engine_parsed_and_in_order(child: dict) -> None:
    rows = child["good"]["rows"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert len({row["tokens"] for row in rows}) > 1  # They did not end together.
    for row, text in zip(rows, child["direct"], strict=True):
        thinking, _, response = text.partition("</think>")
        assert row["complete"] and row["error"] is None
        assert row["thinking"] == thinking.strip()
        assert row["response"] == response.removesuffix("<|im_end|>").strip()
        assert row["finish_reason"] == "stop"


def test_tokens_are_counted_by_part(child: dict) -> None:
    good = child["good"]
    for row, ids in zip(good["rows"], good["ids"], strict=True):
        assert row["prompt_tokens"] == len(ids)
        assert row["thinking_tokens"] > 0
        parts = row["thinking_tokens"] + row["response_tokens"]
        assert row["tokens"] == parts + 1  # The end marker is in neither.


def test_chats_and_dicts_are_prompts_with_ids_and_parameters(child: dict) -> None:
    good, kinds = child["good"]["rows"], child["kinds"]
    rows = kinds["rows"]
    assert [row["id"] for row in rows[:4]] == [None, "b", 3, None]
    assert [row["response"] for row in rows[:2]] == [r["response"] for r in good[:2]]
    assert [row["tokens"] for row in rows[2:4]] == [9, 1]
    assert [p["temperature"] for p in kinds["params"][:4]] == [0, 0, 0, 1]
    assert kinds["truncated"][:4] == [False, False, True, True]
    assert rows[2]["response"] is None and not rows[2]["complete"]


def test_parts_of_a_content_are_its_text(child: dict) -> None:
    texts = child["kinds"]["texts"]
    assert texts[4] == texts[0]
    assert "What is\n7 + 5?" in texts[5]


def test_an_assistants_beginning_is_continued(child: dict) -> None:
    assert child["kinds"]["texts"][6].endswith("<|im_start|>assistant\nThe answer")


def test_a_call_of_a_tool_needs_no_content(child: dict) -> None:
    text = child["kinds"]["texts"][7]
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 7}}\n</tool_call>' in text
    assert "\n12\n</tool_response><|im_end|>\n<|im_start|>assistant" in text


def test_a_formatted_prompt_is_warned_of_once(child: dict) -> None:
    (warning,) = child["kinds"]["warnings"]
    assert "<|im_start|>" in warning and "list of messages" in warning
    assert child["good"]["warnings"] == []


def test_own_values_are_laid_over_what_was_recommended(child: dict) -> None:
    wanted = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 7}
    for params in (child["kinds"]["params"][9], child["zero"]["params"][0]):
        assert wanted.items() <= params.items()


def test_sampling_follows_the_mode_that_the_prompt_is_in(child: dict) -> None:
    recommended = [params["top_p"] for params in child["hybrid"]["params"]]
    recommended += [params["top_p"] for params in child["hybrid off"]["params"]]
    assert recommended == [0.95, 0.8, 0.8]
    assert child["hybrid off"]["ids"] == child["hybrid"]["ids"][1:]


def test_a_response_ends_before_its_stop_string_as_in_vllm(child: dict) -> None:
    (row,) = child["stop"]["rows"]
    assert child["stop"]["text"].endswith("\nRecursion ")
    assert row["response"] == "Recursion" and row["finish_reason"] == "stop"


def test_a_dict_describes_structured_outputs(child: dict) -> None:
    (row,) = child["digits"]["rows"]
    assert row["error"] is None and row["thinking"].isdigit()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "prompt is empty"),
        ("blank", "prompt is empty"),
        ("no messages", "prompt is empty"),
        ("type", "of type int"),
        ("message", "'hello'"),
        ("content", '"role" and "content"'),
        ("no content", '"role" and "content"'),
        ("picture", "URL must be"),
        ("bytes", "can't decode byte"),
        ("surrogate", "surrogates not allowed"),
        ("kwargs", "are a dict"),
        ("key", "unknown key promt"),
        ("both", "either messages or prompt"),
        ("neither", "either messages or prompt"),
        ("long", f"maximum context length is {ROOM}"),
        ("name", "temprature"),
        ("range", "non-negative"),
        ("value", "'max_tokens': 'many'"),
        ("params", "not str"),
        ("several", "list the prompt 2 times"),
        ("engine", "max allowed: 0"),
        ("seed", "got `float`"),
        ("large seed", "64 bits"),
        ("object", "got `str`"),
        ("structured", "unclosed group"),
    ],
)
def test_a_bad_prompt_says_what_is_wrong(child: dict, name: str, reason: str) -> None:
    row = child["mixed"]["rows"][2 * child["bad"].index(name)]
    assert reason in row["error"]
    assert row["response"] is None and not row["complete"] and row["tokens"] == 0


def test_bad_prompts_change_nothing_for_the_others(child: dict) -> None:
    answered = child["mixed"]["rows"][1::2]
    good = without_place(child["good"]["rows"] * 7)[: len(answered)]
    assert len(answered) == len(child["bad"])
    assert without_place(answered) == good


def test_what_the_engine_raises_ends_the_culprit_alone(child: dict) -> None:
    rows = without_place(child["culprit"]["rows"])
    assert "expected a long" in rows.pop(3)["error"]
    assert rows == without_place(child["good"]["rows"])


def test_an_engine_in_a_process_of_its_own_is_spared_bad_values() -> None:
    """It would wait for ever for the answer to the first that it can't read."""
    result = run_child("batch_in_process", VLLM_LOGGING_LEVEL="ERROR")
    errors = [error for error, _ in result["rows"]]
    assert "got `float`" in errors.pop(2) and "64 bits" in errors.pop(2)
    assert errors == [None] * 6
    assert all(tokens > 0 for error, tokens in result["rows"] if error is None)
    assert result["finished"] < 4 and result["again"] == ["7 + 5 = 12"]


def test_prompts_are_read_as_the_engine_needs_them(child: dict) -> None:
    all_there, most = child["streamed"]
    assert all_there and most < 300


def test_the_bar_counts_prompts_tokens_and_cut_ones(child: dict) -> None:
    kinds = child["kinds"]
    assert " 10/10 " in kinds["printed"]
    assert f"tokens/s, {sum(kinds['truncated'])} truncated" in kinds["printed"]
    total = len(child["mixed"]["rows"])
    assert f" {total}/{total} " in child["mixed"]["printed"]
    assert child["good"]["printed"] == ""
    assert child["default"]["printed"] == ""  # Not in CI, unless it is asked for.


def test_the_default_is_what_the_authors_recommend(child: dict) -> None:
    recommended = {
        k: MODELS[TINY_THINKER].sampling[k] for k in ("temperature", "top_p")
    }
    (params,) = child["default"]["params"]
    assert recommended.items() < params.items()
    assert params["max_tokens"] == 2048
    (params,) = child["override"]["params"]
    assert recommended.items() < params.items()
    assert params["max_tokens"] == 3


def test_the_callers_parameters_stay_as_they_were(child: dict) -> None:
    assert child["untouched"]


def test_no_prompts_give_no_results(child: dict) -> None:
    assert child["empty"]["rows"] == []


def test_a_template_that_writes_the_start_token_gives_one(child: dict) -> None:
    assert set(child["special"]) == {False}, "the tokenizer would add another"
    (ids,) = child["llama"]["ids"]
    assert ids.count(child["start_token"]) == 1


def test_a_chat_template_is_found_by_its_name(child: dict) -> None:
    rows = {row["index"]: row for row in child["several"]["rows"]}
    assert rows[0]["response"] == child["good"]["rows"][3]["response"]
    assert "division" in rows[1]["error"]


def test_retries_may_be_none_or_a_text(child: dict) -> None:
    found = [child[f"retry {tries}"]["rows"][0] for tries in (None, "1")]
    assert [(row["tries"], row["tokens"]) for row in found] == [(1, 9), (2, 18)]


def test_template_weights_and_overrides_of_the_engine_make_another_job(
    child: dict,
) -> None:
    first, *others, last = child["jobs"]
    differ = [[k for k in first if first[k] != job[k]] for job in others]
    assert first == last
    assert differ == [["chat_template"], ["random_weights"], ["hf_overrides"]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n", "n=2"),
        ("name", "temprature"),
        ("template", "chat_template is not set"),
        ("kwargs", "enable_thinking"),
    ],
)
def test_what_is_bad_for_all_prompts_is_raised(
    child: dict, name: str, reason: str
) -> None:
    kind, message = child["errors"][name]
    assert kind == "ValueError"
    assert reason in message


def test_an_interrupt_keeps_what_is_finished_and_the_engine(child: dict) -> None:
    finished, good = child["finished"], child["good"]["rows"]
    assert 0 < len(finished) < 12 and "interrupted" not in child
    for row in finished:
        (expected,) = without_place([good[row["index"] % 4]])
        assert without_place([row]) == [expected]
    assert child["left"] == 0 and child["same_step"]
    assert child["again"]["rows"] == good


def test_two_batches_at_once_are_refused_with_one_sentence(child: dict) -> None:
    ((kind, message),) = child["two_at_once"]
    assert kind == "RuntimeError" and "generating already" in message


def test_a_model_without_vllm_says_how_to_load_one() -> None:
    with pytest.raises(TypeError, match="fast_inference=True"):
        run_batch(object(), ["hello"])


def test_one_prompt_is_not_taken_for_a_list_of_them() -> None:
    with pytest.raises(ValueError, match=r"\[prompt\]"):
        run_batch(object(), "hello")
    with pytest.raises(TypeError, match=r"\[messages\]"):
        run_batch(object(), [{"role": "user", "content": "hello"}])
    with pytest.raises(TypeError, match=r"\[prompt\]"):
        run_batch(object(), b"hello")
    table = pyarrow.table({"question": ["hello"]})
    for frame in (table, SimpleNamespace(columns=table.column_names)):  # pandas
        with pytest.raises(TypeError, match=r"pass the column"):
            run_batch(object(), frame)


def test_the_repr_is_short() -> None:
    long = {"prompt": "word " * 9999, "thinking": "Well " * 9999}
    cut = BatchResult(index=2, id="a", finish_reason="length", **long)
    assert "id='a'" in repr(cut) and "'length'" in repr(cut) and len(repr(cut)) < 300
    assert cut.hint == INCOMPLETE_HINT
