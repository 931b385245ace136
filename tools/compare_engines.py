"""Compare the engines on this machine, each in a process of its own.

    python -m tools.compare_engines --model DIRECTORY --out results.json
    python -m tools.compare_engines --merge a.json b.json --out results.json

Every engine gets the same prompts as token ids and goes on to the last token that was
asked for; `helpers.speed` has the rule that each is measured by. `--passes 2` goes
through the rows once more in the opposite order and adds to the repeats. The file is
written after each measurement. The same command again goes on with what is missing, so
a comparison can be made in parts, or on two cards at once and merged. What is merged
last wins, cell by cell: `--rows`, `--batch-sizes` and `--mixed` measure what is to be
added, into a file of its own.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from helpers.internals.engine.plan import detect_device
from helpers.internals.machine.devices import list_gpus
from helpers.models import TINY_THINKER
from helpers.speed import engine_table, load_figures

from .engines import ROWS, Job
from .measuring import describe_model, write_json

POLL_SECONDS = 2.0
LEAST_SECONDS = 40.0  # No row is begun with less time left: it loads for half of that.
BY_SIZE = ("tokens_per_second", "ttft_seconds", "mixed")
# These may differ in a file.
OF_CELLS = ("row", "model", "batch_sizes", "mixed", "repeats", "enough_seconds")


def run(jobs: Sequence[Job], out: Path, passes: int, seconds: float) -> dict[str, Any]:
    """Measure one row after the other; return what `out` holds in the end.

    No row begins after `seconds`, and the one that runs then is ended. A failure is
    kept in its record as "error". Raises `ValueError` if `out` holds a comparison of
    another kind.
    """
    end = time.monotonic() + seconds
    results = _begin(jobs[0], out)
    for number in range(passes):
        for job in jobs if number % 2 == 0 else reversed(jobs):
            earlier = _find(results, job)
            if earlier.get("passes", 0) > number or _left_out(job):
                continue
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                print(f"{job.row}: left out, no time")
                continue
            print(f"{job.row} ...", flush=True)

            def keep(
                record: dict[str, Any], job: Job = job, earlier: dict = earlier
            ) -> None:
                if earlier.get("passes") and "passes" not in record:
                    return  # A later pass counts when it is whole.
                results.update(record.pop("machine", {}))
                _put(results, job, _together(earlier, record))
                write_json(out, results)

            run_child(job, keep, left)
    return results


def _begin(job: Job, out: Path) -> dict[str, Any]:
    """Return the results that `out` holds, or new ones for the same kind of job."""
    kind = asdict(job)
    del kind["row"], kind["model"]
    results = {"model": describe_model(job.model), "engines": []}
    results["job"] = json.loads(json.dumps(kind))
    if out.exists():
        before = json.loads(out.read_text("utf-8"))
        results["device"] = before.get("device")
        if _comparable(before) != _comparable(results):
            raise ValueError(f"{out} holds another comparison: {before['job']}")
        return before
    return results


def _comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Return what comparisons share whose rows may stand in one table."""
    shared = {k: v for k, v in results["job"].items() if k not in OF_CELLS}
    return {"model": results["model"], "device": results.get("device"), **shared}


def _left_out(job: Job) -> bool:
    row = ROWS[job.row]
    if detect_device() == "cpu":
        return row.gpu_only
    return row.gpus > len(list_gpus())


def _find(results: dict[str, Any], job: Job) -> dict[str, Any]:
    return next((r for r in results["engines"] if r["row"] == job.row), {})


def _put(results: dict[str, Any], job: Job, record: dict[str, Any]) -> None:
    """Replace the row's record; keep the records in the order of `ROWS`."""
    row = ROWS[job.row]
    names = {"row": job.row, "engine": row.title, "precision": row.precision}
    others = [r for r in results["engines"] if r["row"] != job.row]
    order = list(ROWS)
    results["engines"] = sorted(
        [*others, {**names, **record}], key=lambda r: order.index(r["row"])
    )


def _together(earlier: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Add the repeats of this pass to those of an earlier one, cell by cell.

    What is measured once, as the load with cold caches, stays that of the first pass.
    """
    if not earlier.get("passes"):
        return record
    merged = {**record, **earlier, "passes": earlier["passes"] + record["passes"]}
    for name in BY_SIZE:
        cells = dict(earlier.get(name, {}))
        for size, values in record.get(name, {}).items():
            cells[size] = [*cells.get(size, []), *values]
        merged[name] = cells
    return merged


def merge(files: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put comparisons of the same kind into one file; of a cell the last one wins."""
    found = [json.loads(file.read_text("utf-8")) for file in files]
    results = {**found[0], "engines": []}
    for one in found:
        if _comparable(one) != _comparable(results):
            raise ValueError(f"not the same comparison: {one['job']}")
        for record in one["engines"]:
            job = Job(record["row"], "")
            earlier = {k: v for k, v in _find(results, job).items() if k != "error"}
            for name in (*BY_SIZE, "limit"):
                if cells := earlier.get(name, {}) | record.get(name, {}):
                    record[name] = cells
            _put(results, job, earlier | record)
    write_json(out, results)
    return results


def run_child(job: Job, keep: Callable[[dict[str, Any]], None], timeout: float) -> None:
    """Measure one row; `keep` gets its record as it grows, and how it ended."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "record.json"), Path(folder, "log")

        def record() -> dict[str, Any]:
            return json.loads(path.read_text()) if path.exists() else {}

        words = [sys.executable, "-m", "tools.compare_engines_child"]
        with open(log, "wb") as output:
            child = subprocess.Popen(
                [*words, json.dumps(asdict(job)), str(path)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status: int | None | str = None
            try:
                while status is None:
                    try:
                        status = child.wait(POLL_SECONDS)
                    except subprocess.TimeoutExpired:
                        if path.exists():
                            keep(record())
                        if time.monotonic() - start > timeout:
                            status = f"not done after {timeout:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # Its engine's processes too.
                child.wait()
        seconds = round(time.monotonic() - start, 1)
        if status == 0:
            keep({**record(), "seconds": seconds, "passes": 1})
        else:
            tail = log.read_text(errors="replace")[-3000:].strip()
            print(f"failed ({status}):\n{tail}", file=sys.stderr)
            keep({**record(), "seconds": seconds, "error": f"({status}) {tail}"})


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(",") if part)
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError("whole numbers from 1 up, commas between")
    return numbers


def _row_names(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"choose from {','.join(ROWS)}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tools.compare_engines",
        description="All other arguments: see Job in tools/engines.py.",
    )
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--out", type=Path, default=Path("_build/engines.json"))
    of_one_gpu = [name for name, row in ROWS.items() if row.gpus == 1]
    parser.add_argument("--rows", type=_row_names, default=of_one_gpu)
    parser.add_argument("--passes", type=int, default=1, help="every second backwards")
    parser.add_argument("--seconds", type=float, default=7200, help="for all rows")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE")
    for entry in fields(Job)[2:]:
        kind = _numbers if isinstance(entry.default, tuple) else type(entry.default)
        option = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=entry.default)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if an engine failed, else 0."""
    options = _parser().parse_args(arguments)
    settings = {entry.name: getattr(options, entry.name) for entry in fields(Job)[2:]}
    job = Job("", options.model, **settings)
    jobs = [replace(job, row=row) for row in options.rows]
    try:
        if options.merge:
            results = merge(options.merge, options.out)
        else:
            results = run(jobs, options.out, options.passes, options.seconds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(engine_table(*load_figures(options.out.stem, options.out.parent)))
    return int(any("error" in record for record in results["engines"]))


if __name__ == "__main__":
    sys.exit(main())
