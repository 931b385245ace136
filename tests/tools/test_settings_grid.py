"""The grid of settings: each job is recorded with the limits that it had."""

import json
import subprocess
import sys
from pathlib import Path

from helpers.schedule import Schedule
from tools.settings_grid import BUDGETS, FIT, LIMITS, MIXES, SLOTS


def test_recorded_steps_are_those_of_a_simulation(tmp_path: Path) -> None:
    out = tmp_path / "settings.json"
    command = [sys.executable, "-m", "tools.settings_grid", "--out", str(out)]
    command += ["--shrink", "16", "--requests", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["device"].startswith("CPU") and found["mixes"].keys() == MIXES.keys()
    jobs = [(job, job) for job in found["fit"]]
    for mix in found["mixes"].values():
        assert len(mix["jobs"]) == len(SLOTS) * len(BUDGETS)
        jobs += [(mix, job) for job in mix["jobs"]]
    assert len(jobs) == len(FIT) + len(MIXES) * len(SLOTS) * len(BUDGETS)
    for mix, job in jobs:
        engine = Schedule(**{name: job[name] for name in LIMITS})
        steps = engine.simulate(mix["prompts"], mix["answers"]).steps
        assert len(steps) == job["steps"] and min(job["seconds"]) > 0
