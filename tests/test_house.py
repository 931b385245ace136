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
from child import find_child

import helpers

ROOT = Path(__file__).resolve().parents[1]
CHILD = find_child("public_names")
MODULES = sorted((ROOT / "helpers").glob("*.py"))
LESSONS = {path.stem for path in MODULES if not path.stem.startswith("__")}
ALL_MODULES = sorted((ROOT / "helpers").rglob("*.py"))
MOST_FLOORS = 6
MOST_MODULES = 14  # at the top
MOST_NAMES = 40
MOST_LINES = 5700  # of all modules; to be lowered, never raised
MOST_LINES_TO_READ = 1500  # of the modules that the README names to be read


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
    read = sum(lines(ROOT / "helpers" / f"{name}.py") for name in modules)
    assert read <= MOST_LINES_TO_READ


def test_the_house_is_small():
    assert sum(map(lines, ALL_MODULES)) <= MOST_LINES
    assert len(LESSONS) <= MOST_MODULES


def test_the_readme_names_each_module_and_each_room_and_no_other():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Reading the helpers")[1].split("\n## ")[0]
    lessons, rooms = section.split("`helpers/internals/`")
    assert set(re.findall(r"`(\w+)`", lessons)) == LESSONS
    there = {path.name for path in (ROOT / "helpers/internals").glob("[a-z]*")}
    assert set(re.findall(r"`(\w+)`", rooms.split("`tools/`")[0])) == there


GROUND = {"models", "charts"}  # Lessons that internals may use too.


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path, known: set[str]) -> set[str]:
    """Modules of `known` that a module imports, at its top or in a function."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *((node.module or "").split("."))]).strip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found & known


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Each module of the package with those of the package that it imports."""
    by_name = {module_name(path): path for path in ALL_MODULES}
    del by_name["helpers"]
    return {
        name: imported_by(path, set(by_name)) - {name} for name, path in by_name.items()
    }


def test_imports_have_no_circle_and_at_most_six_floors(graph):
    floors: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        floors[name] = 1 + max((floors[one] for one in graph[name]), default=0)
    assert max(floors.values()) <= MOST_FLOORS, floors


def test_internals_import_internals_and_the_ground_only(graph):
    ground = {f"helpers.{name}" for name in GROUND}
    upwards = {
        name: bad
        for name, used in graph.items()
        if name.startswith("helpers.internals.")
        and (bad := {u for u in used if ".internals" not in u} - ground)
    }
    assert upwards == {}


def test_no_helper_imports_the_tools():
    for path in ALL_MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("tools"), path


@pytest.mark.parametrize("folder", ["helpers", "tools"])
def test_no_module_has_over_400_lines_and_no_function_over_50(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert lines(path) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 50, f"{node.name} in {path}"


def test_a_clone_on_windows_keeps_the_line_ends_that_make_needs():
    asked = ["git", "check-attr", "eol", "Makefile", ".ci/run"]
    said = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout == "Makefile: eol: lf\n.ci/run: eol: lf\n"
