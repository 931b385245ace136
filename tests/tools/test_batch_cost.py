"""A batch from file to file takes no more memory for more prompts."""

from pathlib import Path

from tools.batch_cost import measure_memory


def test_memory_does_not_grow_with_the_prompts(tmp_path: Path) -> None:
    few = measure_memory(2_000, tmp_path)
    (tmp_path / "answers.jsonl").unlink()
    many = measure_memory(30_000, tmp_path)
    assert few["in order"] and many["in order"]
    # Some 40 bytes of bookkeeping for each, 1.1 MiB here; their records are 9 MiB.
    assert many["MiB at most"] - few["MiB at most"] < 6
