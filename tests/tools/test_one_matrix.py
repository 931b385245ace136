import json
import statistics
from pathlib import Path

from tools import one_matrix

RECORDED = Path(__file__).resolve().parents[2] / "notebooks" / "figures" / "matrix.json"


def medians(record: dict) -> dict[int, float]:
    found = record["milliseconds"]
    return {int(n): statistics.median(values) for n, values in found.items()}


def test_a_file_has_a_time_for_each_batch(tmp_path: Path) -> None:
    assert one_matrix.main(["--side", "64", "--out", str(tmp_path / "one.json")]) == 0
    record = json.loads((tmp_path / "one.json").read_text())
    assert tuple(medians(record)) == one_matrix.COUNTS
    assert record["bytes_per_second"] > 0


def test_the_recorded_gpu_shows_what_the_notebook_says() -> None:
    """Batch 64 costs as much as batch 1, and from 256 on the arithmetic takes over."""
    recorded = medians(json.loads(RECORDED.read_text()))
    assert recorded[64] < 1.2 * recorded[1]
    assert recorded[512] > 1.4 * recorded[1]
