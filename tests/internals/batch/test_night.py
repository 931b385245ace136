"""A batch that is killed, stopped or out of disk loses nothing and repeats nothing."""

import pytest
from child import run_child

COUNT = 220
BAD = {7: "the prompt is empty", 9: "hot"}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What happened in one Python that loads the engine once, and forks."""
    folder = tmp_path_factory.mktemp("night")
    # OpenMP's threads do not survive a fork: one thread needs none.
    one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return run_child("night", str(folder), **one_thread)


def test_a_batch_that_is_killed_again_and_again_has_each_prompt_once(
    child: dict,
) -> None:
    sizes = child["sizes"]
    assert len(sizes) == len(set(sizes)) == 26  # Each kill found it at work.
    assert sizes == sorted(sizes)
    assert 0 < child["left"] < 2 * COUNT
    rows = child["killed"]
    assert [row["index"] for row in rows] == list(range(COUNT))
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(COUNT)]
    for number, row in enumerate(rows):
        if number in BAD:
            assert BAD[number] in row["error"]
        else:
            assert row["error"] is None
            told = row["thinking"] + row["response"] if row["complete"] else ""
            assert f"{number} + {number + 8}" in told or row["finish_reason"] != "stop"


def test_the_list_of_results_says_the_same_as_the_file(child: dict) -> None:
    names = ("id", "thinking", "response", "complete", "completion_tokens", "error")
    from_file = [
        [row[name] for name in (*names, "tries")] for row in child["killed"][:40]
    ]
    assert child["in_memory"] == from_file
    assert child["prompts_kept"]


def test_only_thinking_that_ran_out_is_tried_again_with_twice_the_tokens(
    child: dict,
) -> None:
    rows = [row for row in child["killed"] if row["error"] is None]
    assert {row["tries"] for row in rows} == {1, 2}
    for row in rows:
        if row["tries"] == 1:
            assert row["completion_tokens"] <= 48
            assert row["finish_reason"] == "stop" or row["response"] is not None
        else:
            assert row["completion_tokens"] <= 96


def test_a_finished_job_is_left_as_it_is(child: dict) -> None:
    assert child["finished_stays"]
    assert "killed.jsonl" in child["summary"]
    assert f"{COUNT}\n" in child["summary"]


def test_stop_keeps_what_is_finished_and_leaves_a_working_engine(child: dict) -> None:
    assert child["stop_seconds"] < 2
    assert 0 < child["stopped"] < 80
    assert child["stopped_same"]


def test_a_full_disk_ends_the_job_once_and_it_goes_on_later(child: dict) -> None:
    kind, message = child["full"]
    assert kind == "OSError"
    count = len(child["full_lines"])
    assert 0 < count < 40
    assert f"{count} records are safe: make room" in message
    assert child["full_same"]


def test_an_output_is_written_by_one_process_for_one_job(child: dict) -> None:
    kind, message = child["locked"]
    assert kind == "RuntimeError" and "held.jsonl" in message
    differences = {
        "sampling": "sampling_params was [{'max_tokens': 48, 'temperature': 0.0}], is",
        "prompts": "prompts was 220, is 40; prompts_hash was ",
        "template": "chat_template_kwargs was {}, is {'a': 1}",
    }
    for name, difference in differences.items():
        kind, message = child["other_job"][name]
        assert kind == "ValueError" and difference in message


def test_bad_parameters_fail_before_anything_is_written(child: dict) -> None:
    assert child["bad_sampling"][0] == "ValueError"
    assert child["bad_ending"][0] == "ValueError"
    assert not [name for name in child["folder"] if name.startswith("bad")]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.parquet"])
def test_requests_of_openai_go_from_file_to_file(child: dict, name: str) -> None:
    assert child[name]
    assert f"{name}.jsonl" not in child["folder"]
    assert not [name for name in child["folder"] if name.endswith(".tmp")]
