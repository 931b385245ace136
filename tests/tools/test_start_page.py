"""The page that JupyterLab opens with: the README's table, linked from its folder."""

import re
from pathlib import Path

import pytest

from tools.figures import ROOT, START_PAGE, start_page


def test_the_page_is_what_the_command_writes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert START_PAGE.read_text(encoding="utf-8") == start_page(readme), (
        "run `make figures`"
    )


def test_its_links_lead_somewhere_and_every_notebook_has_one() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", START_PAGE.read_text(encoding="utf-8"))
    assert all((START_PAGE.parent / target).exists() for target in targets)
    notebooks = {
        path.name for path in Path(START_PAGE.parent).glob("[0-9][0-9]_*.ipynb")
    }
    assert notebooks <= set(targets)


def test_a_readme_without_the_table_is_named() -> None:
    with pytest.raises(ValueError, match="no table"):
        start_page("# A README\n")
