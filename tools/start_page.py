"""Write notebooks/00_start_here.md from the README's table of notebooks.

`python -m tools.start_page` does it, after the table has changed. JupyterLab opens the
page rendered, so that its links open the notebooks.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "notebooks" / "00_start_here.md"
_TEXT = """\
# Start here

Click a notebook. It opens beside this page; **Run > Run All Cells** runs it from the
top. The kernel then stays for the exercises. It ends ten minutes after the last cell,
at once when you run the last cell again, or when the next notebook needs its memory.
The square button in the toolbar stops what is running. The contents are on the right.

{table}

[01](01_environment_verification.ipynb) says what this machine can do and what to fix.
The [glossary](glossary.md) explains the words of the field. The rest is in the
[README](../README.md): choosing a model, recipes to copy, and what to do when something
goes wrong. `make notebooks` makes web pages of all that is here: `_build/index.html`.
"""


def start_page(readme: str) -> str:
    """Make the page of a README: its table of notebooks, with links from their folder.

    Raises:
        ValueError: the README has no table whose first row is a link to a notebook.
    """
    table = re.search(r"^\| notebook \|.*\n(?:\|.*\n)+", readme, re.MULTILINE)
    if table is None:
        raise ValueError("the README has no table that begins with | notebook |")
    return _TEXT.format(table=table[0].replace("](notebooks/", "](").rstrip())


if __name__ == "__main__":
    PAGE.write_text(start_page((ROOT / "README.md").read_text(encoding="utf-8")))
