"""Put the README's screenshots in their place: `python -m tools.screenshots`.

They are those that the tests in a browser took last, so run these before it:
`.venv/bin/python -m pytest tests/browser`.
"""

import shutil
import sys

from .execution import ROOT

TAKEN = ROOT / "_build" / "browser"
# Where the test leaves it, and what the README calls it.
CHOSEN = {"gallery_index_light.png": "gallery.png", "live_2.png": "live.png"}


def main() -> int:
    """Copy them to .github; return 1 if one was not taken yet."""
    if missing := [name for name in CHOSEN if not (TAKEN / name).exists()]:
        print(f"No {', '.join(missing)} in {TAKEN}.\n{__doc__}", file=sys.stderr)
        return 1
    for name, called in CHOSEN.items():
        shutil.copy(TAKEN / name, ROOT / ".github" / called)
    return 0


if __name__ == "__main__":
    sys.exit(main())
