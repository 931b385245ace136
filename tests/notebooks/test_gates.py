"""The gates on the notebooks, and that each gate can fail."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_gates import (
    FOLDED,
    GATES,
    ROOT,
    SHUTDOWN,
    TO_TRY_IN,
    check_numbering,
    check_take_away_runs,
    headings,
    read,
)

from tools.execution import STAMP, canonical_bytes, make_stamp

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_are_numbered_without_a_gap():
    assert NOTEBOOKS
    assert check_numbering(NOTEBOOKS) == []


@each_notebook
@pytest.mark.parametrize("gate", GATES)
def test_notebook_passes(gate, path):
    assert GATES[gate](path) == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda p: p.stem)
def test_links_of_page_lead_somewhere(path):
    assert GATES["links"](path) == []


def test_glossary_is_in_the_order_of_the_alphabet():
    terms = [title for level, title in headings(FOLDER / "glossary.md") if level == 2]
    assert terms == sorted(terms, key=str.casefold)


@each_notebook
def test_readme_has_the_figures_of_the_run(path):
    """Seconds as they are, memory in GB rounded up."""
    stamp = read(path).metadata[STAMP]
    row = next(
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("|") and path.name in line
    )
    gb = math.ceil(stamp["memory_mib"] * 2**20 / 1e9)
    assert row.endswith(f"| {stamp['seconds']} s | {gb} GB |")


def test_readme_names_the_sections_of_the_recipes():
    links = re.findall(
        r"\[\d\d, section (\d+)\]\(([^)]+)\)", (ROOT / "README.md").read_text()
    )
    assert links
    for section, path in links:
        titles = [title for _, title in headings(ROOT / path)]
        assert f"{section} Take it with you" in titles, path


@each_notebook
def test_take_away_runs(path):
    assert check_take_away_runs(path) == []


# --- The gates can fail ---------------------------------------------------------------

SETUP, VALUES, TAKE_AWAY, EXERCISES, TRY, SOLUTION, END = 2, 4, 6, 7, 9, 11, 18
IMPORT = "from helpers import FastLanguageModel"


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def exercise(task: str, solution: str) -> list[NotebookNode]:
    folded = {"tags": ["solution"], "jupyter": dict(FOLDED)}
    return [
        new_markdown_cell(task),
        new_code_cell(TO_TRY_IN, metadata={"tags": ["exercise"]}),
        new_markdown_cell("What the solution does."),
        new_code_cell(solution, metadata=folded),
    ]


def empty_text(count: int) -> list[NotebookNode]:
    return [new_markdown_cell() for _ in range(count)]


def small_notebook() -> NotebookNode:
    """The shortest notebook that passes all gates."""
    opening = "**You will be able to**\n\n- count.\n\n**Time and memory:** little."
    notebook = new_notebook(
        cells=[
            new_markdown_cell(f"# 01 Small lesson\n\nWhy.\n\n{opening}"),
            new_markdown_cell("## 1 Setup\n\nUnsloth first."),
            new_code_cell(f"{IMPORT}\n\nprint(FastLanguageModel)"),
            new_markdown_cell(
                "### Values you may change\n\nHow many [tokens](glossary.md#token)."
            ),
            new_code_cell("COUNT = 2\nassert sum(range(COUNT)) == 1"),
            new_markdown_cell("## 2 Take it with you\n\nOne line."),
            new_code_cell("print(2 + 2)", metadata={"tags": ["take-away"]}),
            new_markdown_cell("## 3 Exercises\n\nAfter [the setup](#1-Setup)."),
            *exercise("**1.** Count on.", "print(COUNT + 1)"),
            *exercise("**2.** Count back.", "print(COUNT - 1)"),
            new_markdown_cell("## 4 Troubleshooting\n\nSee [this](../README.md)."),
            new_markdown_cell("## 5 End the kernel\n\nAlways."),
            new_code_cell(SHUTDOWN),
        ]
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        if "print" in cell.source:
            cell.outputs = [printed("4\n")]
    notebook.metadata[STAMP] = make_stamp(notebook, seconds=1, memory_mib=1)
    return notebook


def write(folder: Path, content: bytes, name: str = "01_small_lesson.ipynb") -> Path:
    path = folder / "notebooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    (folder / "README.md").touch()
    (path.parent / "glossary.md").write_text("## token\n\nA part of a text.\n")
    return path


@pytest.mark.parametrize("gate", GATES)
def test_small_notebook_passes(gate, tmp_path):
    assert GATES[gate](write(tmp_path, canonical_bytes(small_notebook()))) == []


Change = Callable[[NotebookNode], object]


def source(place: int, text: str) -> Change:
    return lambda notebook: notebook.cells[place].update(source=text)


def everywhere(**values: object) -> Change:
    return lambda notebook: [
        cell.update(values) for cell in notebook.cells if cell.cell_type == "code"
    ]


def append(place: int, text: str) -> Change:
    def change(notebook: NotebookNode) -> None:
        notebook.cells[place].source += text

    return change


def output(place: int, *outputs: NotebookNode) -> Change:
    return lambda notebook: notebook.cells[place].update(outputs=list(outputs))


def stamp(**fields: object) -> Change:
    return lambda notebook: notebook.metadata[STAMP].update(fields)


def unstamp(*fields: str) -> Change:
    return lambda notebook: [notebook.metadata[STAMP].pop(field) for field in fields]


def shown(**data: object) -> NotebookNode:
    kinds = {"html": "text/html", "widget": "application/vnd.jupyter.widget-view+json"}
    content = {kinds[kind]: value for kind, value in data.items()}
    return new_output("display_data", data=content)


OLD = {"python": "3.11.2", "unsloth": "2026.1.1"}
BROKEN: list[tuple[str, str, Change]] = [
    ("title", "begin with", source(0, "Hello")),
    ("title", "2 titles", append(1, "\n\n# Another")),
    ("title", "not the file's", source(0, "# 01 Large lesson")),
    ("ruff", "F401", append(VALUES, "\nimport os")),
    ("ruff", "E501", append(VALUES, "\n#" + " long" * 20)),
    ("ruff", "format", source(VALUES, "COUNT = '2'")),
    ("unsloth first", "transformers", source(SETUP, f"import transformers\n{IMPORT}")),
    (
        "unsloth first",
        "vllm.SamplingParams",
        source(SETUP, f"if True:\n    from vllm import SamplingParams\n{IMPORT}"),
    ),
    (
        "unsloth first",
        "first import is helpers.kernel",
        source(SETUP, "import helpers.kernel"),
    ),
    ("unsloth first", "first import is None", source(SETUP, "print(1)")),
    ("unsloth first", "cell 5: unsloth is", append(VALUES, "\nimport unsloth")),
    (
        "unsloth first",
        "cell 5: vllm.LLM is",
        append(VALUES, "\n\n\ndef load():\n    from vllm import LLM"),
    ),
    ("unsloth first", "cell 12: transformers", source(SOLUTION, "import transformers")),
    (
        "unsloth first",
        "trl is .* in the take-away",
        source(TAKE_AWAY, "import trl\nimport unsloth"),
    ),
    (
        "one import",
        "cell 5: helpers.batch.run_batch",
        append(VALUES, "\nfrom helpers.batch import run_batch"),
    ),
    ("asserts", "0 asserts", source(VALUES, "COUNT = 2")),
    ("asserts", "1 asserts", source(VALUES, "assert True, 'PASSED'")),
    ("asserts", "behaviour", source(VALUES, "assert isinstance(COUNT, int)")),
    ("asserts", "behaviour", source(VALUES, "assert COUNT is not None")),
    ("asserts", "behaviour", source(VALUES, "assert torch.__version__ > '2'")),
    ("asserts", "cell 5", append(VALUES, "\nassert setup.is_noise or COUNT == 2")),
    ("asserts", "cell 12", source(SOLUTION, "assert setup.on_gpu or COUNT == 2")),
    (
        "asserts",
        "0 asserts",
        lambda n: n.cells[VALUES].metadata.update(tags=["solution"]),
    ),
    ("shutdown", "last code cell", append(END, "\nprint(1)")),
    ("shutdown", "last code cell", lambda n: n.cells.append(new_code_cell("print(1)"))),
    ("shutdown", "cell 12", source(SOLUTION, "shutdown_kernel()")),
    ("lengths", "half of .* 9 lines", everywhere(source="x = 1\n" * 9)),
    ("lengths", "26 lines", source(VALUES, "COUNT = 2\n" * 26)),
    ("lengths", "9 cells of text", lambda n: [n.cells.pop(at) for at in (17, 16)]),
    ("lengths", "66 cells", lambda n: n.cells.extend(empty_text(47))),
    ("lengths", "cell 4 has no lead-in", lambda n: n.cells.pop(3)),
    ("lengths", "cell 11 has no lead-in", lambda n: n.cells.pop(SOLUTION - 1)),
    ("sections", "no .*You will be able to", source(0, "# 01 Small lesson")),
    ("sections", "no .*Take it with you", source(5, "## 2 Copy it")),
    ("sections", "numbered 1, 2, 4", source(EXERCISES, "## 4 Exercises")),
    ("solutions", "1 cells are tagged", lambda n: n.cells.pop(SOLUTION)),
    ("solutions", "to try in before", lambda n: n.cells.pop(TRY)),
    ("solutions", "is empty", append(TRY, "\nprint(3)")),
    ("solutions", "is empty", output(TRY, printed("3"))),
    ("solutions", "cell 12", lambda n: n.cells[SOLUTION].metadata.pop("jupyter")),
    (
        "solutions",
        "cell 5",
        lambda n: n.cells[VALUES].metadata.update(jupyter={"source_hidden": True}),
    ),
    ("links", "02.ipynb leads", append(3, " [next](02.ipynb)")),
    ("links", "missing.png leads", append(3, ' <img src="missing.png">')),
    ("links", "gone.md leads", append(3, " [x][y]\n\n[y]: gone.md")),
    ("links", "etc/hosts leads", append(3, " [x](/etc/hosts)")),
    ("links", "names no heading", append(3, " [x](#1-Set-up)")),
    ("links", "no word", source(3, "### Values you may change\n\nHow far.")),
    ("links", "names no heading", append(3, " [x](../README.md#one)")),
    ("links", "names no heading", append(3, " [x](01_small_lesson.ipynb#2-Take)")),
    ("stamp", "no stamp", lambda n: n.metadata.pop(STAMP)),
    ("stamp", "code has changed", append(VALUES, "\nCOUNT = 3")),
    ("stamp", "lacks device, seconds", unstamp("device", "seconds")),
    ("stamp", "future", stamp(date="2999-01-01")),
    ("stamp", "not a date", stamp(date="yesterday")),
    ("stamp", "no such device", stamp(device="tpu")),
    ("stamp", "not a time", stamp(seconds=0)),
    ("stamp", "not a memory", stamp(memory_mib=0.5)),
    ("stamp", "unsloth 2026.1.1, not", stamp(device="cpu", versions=OLD)),
    ("stamp", "version of Python", stamp(versions={})),
    (
        "outputs",
        "cell 5: Oops",
        output(VALUES, new_output("error", ename="Oops")),
    ),
    ("outputs", "on stderr: W: slow", output(VALUES, printed("W: slow\n", "stderr"))),
    ("outputs", "no fallback", output(VALUES, shown(widget={"model_id": "1"}))),
    ("outputs", "cell 3: prints", output(SETUP)),
    ("outputs", "no output at all", everywhere(outputs=[])),
    ("outputs", "counts", lambda n: n.cells[SOLUTION].update(execution_count=7)),
    ("private", "output of cell 3: a token", output(SETUP, printed("hf_" + "a1" * 17))),
    ("private", "^cell 5: a token", append(VALUES, f"\nKEY = 'ghp_{'x' * 36}'")),
    ("private", "a path", output(SETUP, printed("in /home/ada/.cache"))),
    ("private", "a path", output(SETUP, shown(html="<p>/tmp/ipykernel_7/1.py</p>"))),
    ("private", "a path", output(SETUP, printed(f"{ROOT}/helpers"))),
    ("private", "^cell 4: a path", append(3, " See C:\\Users.")),
    ("take-away", "0 cells", lambda n: n.cells[TAKE_AWAY].metadata.pop("tags")),
    ("take-away", "names helpers", append(TAKE_AWAY, "\nimport helpers.kernel")),
]


@pytest.mark.parametrize(("gate", "complaint", "change"), BROKEN)
def test_gate_complains(gate, complaint, change, tmp_path):
    notebook = small_notebook()
    change(notebook)
    complaints = GATES[gate](write(tmp_path, canonical_bytes(notebook)))
    assert any(re.search(complaint, found) for found in complaints), complaints


def test_format_gate_complains(tmp_path):
    def complaints(**changes: object) -> list[str]:
        content = json.loads(canonical_bytes(small_notebook())) | changes
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        return GATES["format"](write(tmp_path, text.encode()))

    assert complaints() == []
    spec = {"display_name": "Julia", "language": "julia", "name": "julia"}
    assert "python3" in complaints(metadata={"kernelspec": spec})[0]
    older = [{"cell_type": "markdown", "metadata": {}, "source": "# 01"}]
    assert "not nbformat 4.5" in complaints(nbformat_minor=4, cells=older)
    assert "not valid" in complaints(cells=[{"cell_type": "code", "id": "a"}])[0]
    assert "canonical" in complaints(metadata={"toc": {}} | {"kernelspec": spec})[-1]
    twice = json.loads(canonical_bytes(small_notebook()))["cells"][:1] * 2
    assert complaints(cells=twice) == ["two cells have the same id"]


def test_a_token_of_the_settings_is_found_in_whatever_form(tmp_path, monkeypatch):
    notebook = small_notebook()
    notebook.cells[SETUP].outputs = [printed("Bearer secret-of-mine")]
    path = write(tmp_path, canonical_bytes(notebook))
    assert GATES["private"](path) == []
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert GATES["private"](path) == ["output of cell 3: a token"]


def test_numbering_gate_complains():
    def complaints(*names: str) -> list[str]:
        return check_numbering([Path(f"{name}.ipynb") for name in names])

    assert complaints("01_one", "02_the_other") == []
    assert complaints("02_one") and complaints("01_one", "01_two")
    assert complaints("01_one", "03_three") and complaints("00_zero", "01_one")
    for name in ("01", "01_One", "01-one", "1_one", "01_one_"):
        assert "NN_snake_case" in complaints(name)[0]


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("x = 2", "prints nothing"),
        ("print('  ')", "prints nothing"),
        ("print(1); import sys; sys.stderr.write('W: slow')", "on stderr: W: slow"),
        ("print(1); raise ValueError('no')", "on stderr: ValueError: no"),
        ("print(1); import os; os._exit(3)", "ended with 3"),
        ("print(open('../model.txt').read())", "FileNotFoundError"),
        ("import os; print(os.environ['LOAD_IN_4BIT'])", "KeyError"),
    ],
)
def test_take_away_gate_complains(program, complaint, tmp_path, monkeypatch):
    monkeypatch.setenv("LOAD_IN_4BIT", "true")
    notebook = small_notebook()
    path = write(tmp_path, canonical_bytes(notebook))
    assert check_take_away_runs(path) == []
    notebook.cells[TAKE_AWAY].source = program
    path.write_bytes(canonical_bytes(notebook))
    assert complaint in "\n".join(check_take_away_runs(path))
