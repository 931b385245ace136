"""The package itself: one import for every public name, and nothing heavy before."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import helpers

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).parent / "children" / "public_names.py"
MOST_NAMES = 70


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh Python imports for the package, and for each public name."""
    done = subprocess.run(
        [sys.executable, str(CHILD)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_importing_the_package_imports_next_to_nothing(imported):
    assert set(imported["package"]) <= {"helpers", "lazy_loader"}


def test_every_public_name_is_there_and_imports_no_engine(imported):
    assert imported["missing"] == []
    heavy = {"torch", "transformers", "unsloth", "vllm", "numpy", "matplotlib"}
    assert not heavy & set(imported["names"])


def python_in(markdown: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def names_in_use() -> set[str]:
    """What notebooks and README import from `helpers`."""
    programs = python_in((ROOT / "README.md").read_text())
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        programs += [cell.source for cell in cells if cell.cell_type == "code"]
        for cell in cells:
            programs += python_in(cell.source) if cell.cell_type == "markdown" else []
    return {
        alias.name
        for program in programs
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.ImportFrom) and node.module == "helpers"
        for alias in node.names
    }


def test_public_is_what_notebooks_and_readme_use():
    assert set(dir(helpers)) == names_in_use()
    assert len(dir(helpers)) <= MOST_NAMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        helpers.no_such_name  # noqa: B018
