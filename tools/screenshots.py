"""Take the README's screenshots again: `python -m tools.screenshots`.

Two tests in a browser take them, of the committed notebooks and of this tree. What they
show is written beside them, so that a test notices when it is no longer so.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from .execution import ROOT, find_notebooks

TAKEN = ROOT / "_build" / "browser"
PICTURES = ROOT / ".github"
SHOWN = PICTURES / "pictures.json"
# Where a test leaves it, and its name in the README.
CHOSEN = {"gallery_index_light.png": "gallery.png", "response.png": "live.png"}
TESTS = (
    "tests/browser/test_pages.py::"
    "test_pages_are_accessible_and_load_without_complaint[light]",
    "tests/browser/test_jupyterlab.py::"
    "test_the_stop_button_stops_and_a_closed_tab_leaves_nothing",
)
LIVE_CODE = ROOT / "tests" / "browser" / "browser_live_child.py"


def describe_pictures() -> dict[str, object]:
    """Return, by picture, what it shows of this tree: titles, or a hash of code."""
    titles = [_read_title(path) for path in find_notebooks(ROOT / "notebooks")]
    code = hashlib.sha256(LIVE_CODE.read_bytes()).hexdigest()
    return {"gallery.png": titles, "live.png": code}


def _read_title(path: Path) -> str:
    first = nbformat.read(path, as_version=4).cells[0].source
    return first.splitlines()[0].removeprefix("# ")


def main() -> int:
    """Run the tests, and copy their pictures; return 1 if one was not taken."""
    for name in CHOSEN:
        (TAKEN / name).unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT)
    if missing := [name for name in CHOSEN if not (TAKEN / name).exists()]:
        print(f"The tests left no {', '.join(missing)} in {TAKEN}.", file=sys.stderr)
        return 1
    for name, called in CHOSEN.items():
        shutil.copy(TAKEN / name, PICTURES / called)
    SHOWN.write_text(json.dumps(describe_pictures(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
