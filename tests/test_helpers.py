"""The package itself: one import for every public name, and nothing heavy before."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest

import helpers

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).parent / "children" / "public_names.py"
MODULES = sorted((ROOT / "helpers").glob("*.py"))
MOST_NAMES = 70
MOST_LINES = 2000  # of the modules that the README names to be read


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


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_modules_to_be_read_are_read_in_half_an_hour():
    """The README lists them in a line of its own, in the order to read them in."""
    readme = (ROOT / "README.md").read_text()
    listed = re.search(r"^(`\w+`[,.] ?(?:and )?){4,}$", readme, re.MULTILINE)
    modules = re.findall(r"`(\w+)`", listed[0])
    assert len(modules) == 6
    assert sum(lines(ROOT / "helpers" / f"{name}.py") for name in modules) <= MOST_LINES


def test_the_readme_says_what_each_module_is_for():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Reading the helpers")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert {path.stem for path in MODULES if "__" not in path.stem} <= named


def test_imports_have_no_circle_and_none_leads_to_the_tools():
    graph = {}
    for path in MODULES:
        found = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        graph[path.stem] = {node.module for node in found if node.level == 1}
        assert not any((node.module or "").startswith("tools") for node in found)
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("folder", ["helpers", "tools"])
def test_no_module_has_over_400_lines_and_no_function_over_50(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert lines(path) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 50, f"{node.name} in {path}"
