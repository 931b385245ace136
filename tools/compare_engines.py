"""Compare the engines on this machine, each in a process of its own.

    python -m tools.compare_engines --model DIRECTORY --out results.json

Every engine gets the same prompts as token ids and goes on to the last token that was
asked for; `helpers.speed` has the rule that each is measured by. The file is written
anew with each measurement. The same command again goes on with the engines that it
lacks, so a comparison can be made in parts. `tools.figures` draws it.
"""

import argparse
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
from helpers.models import TINY_THINKER, is_noise
from helpers.speed import engine_table, load_figures

from .compare_engines_child import TITLES, Job

PRECISIONS = ("16-bit", "4-bit")
POLL_SECONDS = 2.0


def run(jobs: Sequence[Job], out: Path, timeout: float) -> dict[str, Any]:
    """Measure one engine after the other; what `out` holds in the end.

    `timeout` is in seconds for each child. A failure is kept in its record as "error".
    Raises `ValueError` where `out` holds a comparison of another kind.
    """
    job = asdict(jobs[0])
    del job["engine"], job["precision"], job["model"]
    name = Path(jobs[0].model).name
    noise = is_noise(jobs[0].model)
    model = f"random weights in the shape of {name}" if noise else name
    results: dict[str, Any] = {"model": model, "job": json.loads(json.dumps(job))}
    results["engines"] = []
    if out.exists():
        before = json.loads(out.read_text("utf-8"))
        if any(before[key] != results[key] for key in ("model", "job")):
            raise ValueError(f"{out} holds another comparison: {before['job']}")
        results = before
    out.parent.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        key = (TITLES[job.engine], job.precision)
        done = [(r["engine"], r["precision"]) for r in results["engines"] if _whole(r)]
        if key in done:
            continue
        if job.in_4bit and job.on_vllm and detect_device() == "cpu":
            print(f"{job.engine}: left out, vLLM has no 4-bit weights on a CPU")
            continue
        print(f"{', '.join(key)} ...", flush=True)
        others = [r for r in results["engines"] if (r["engine"], r["precision"]) != key]

        def keep(record: dict[str, Any], others: list = others) -> None:
            results.update(record.pop("machine", {}))
            results["engines"] = [*others, record]
            out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")

        run_child(job, keep, timeout)
    return results


def _whole(record: dict[str, Any]) -> bool:
    return "seconds" in record and "error" not in record


def run_child(job: Job, keep: Callable[[dict[str, Any]], None], timeout: float) -> None:
    """Measure one engine; `keep` gets its record as it grows, and how it ended."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "record.json"), Path(folder, "log")

        def record() -> dict[str, Any]:
            measured = json.loads(path.read_text()) if path.exists() else {}
            return {
                "engine": TITLES[job.engine],
                "precision": job.precision,
                **measured,
            }

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
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)  # Its workers too.
                    child.wait()
        seconds = round(time.monotonic() - start, 1)
        if status == 0:
            keep({**record(), "seconds": seconds})
        else:
            tail = log.read_text(errors="replace")[-3000:].strip()
            print(f"failed ({status}):\n{tail}", file=sys.stderr)
            keep({**record(), "seconds": seconds, "error": f"({status}) {tail}"})


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(",") if part)
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError("whole numbers from 1 up, commas between")
    return numbers


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"choose from {','.join(known)}")
        return found

    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tools.compare_engines",
        description="All other arguments: see Job in tools/compare_engines_child.py.",
    )
    parser.add_argument("--model", default=TINY_THINKER)
    parser.add_argument("--out", type=Path, default=Path("_build/engines.json"))
    parser.add_argument("--engines", type=_names(list(TITLES)), default=list(TITLES))
    parser.add_argument("--precisions", type=_names(PRECISIONS), default=PRECISIONS)
    parser.add_argument("--timeout", type=float, default=600, help="seconds per engine")
    for entry in fields(Job)[3:]:
        kind = _numbers if isinstance(entry.default, tuple) else type(entry.default)
        option = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=entry.default)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where an engine failed, 0 otherwise."""
    options = _parser().parse_args(arguments)
    settings = {entry.name: getattr(options, entry.name) for entry in fields(Job)[3:]}
    job = Job("", options.model, **settings)
    jobs = [
        replace(job, engine=engine, precision=precision)
        for precision in options.precisions
        for engine in options.engines
    ]
    try:
        results = run(jobs, options.out, options.timeout)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(engine_table(*load_figures(options.out.stem, options.out.parent)))
    return int(any("error" in record for record in results["engines"]))


if __name__ == "__main__":
    sys.exit(main())
