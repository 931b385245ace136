"""tools.gallery: small notebooks in real kernels, into a gallery or in place."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from tools import gallery
from tools.execution import (
    STAMP,
    Run,
    canonical_bytes,
    code_sha256,
    find_notebooks,
)
from tools.pages import _first_picture, make_pages

ROOT = Path(__file__).resolve().parents[2]
GONE_SECONDS = 15.0
START_SECONDS = 60.0

PICTURE = """\
import base64
from IPython.display import Image

Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBg\
AAAABQABpfZFQAAAAABJRU5ErkJggg=="))"""
COMPILES = """\
import os, pathlib

folder = pathlib.Path(os.environ["UNSLOTH_COMPILE_LOCATION"])  # where Unsloth writes
(folder / "compiled.py").touch()"""
WIDGET = """\
import ipywidgets

ipywidgets.IntSlider()"""
SOLUTION = {"tags": ["solution"], "jupyter": {"source_hidden": True}}


def write(folder: Path, name: str, *cells: str, **metadata: object) -> Path:
    """A notebook of cells: Markdown those that begin with #, code the others."""
    folder.mkdir(exist_ok=True)
    made = [
        new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell)
        for cell in cells
    ]
    path = folder / name
    notebook = new_notebook(cells=made, metadata=metadata)
    path.write_bytes(nbformat.writes(notebook).encode())
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> SimpleNamespace:
    """Five notebooks in a folder, three of which fail, made into a gallery once."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "notebooks"
    write(
        folder,
        "01_first_steps.ipynb",
        "# 01 First <steps>\n\nCounts. Then [more](02_more.ipynb#2-End) follows.",
        COMPILES,
        "print(6 * 7)",
        PICTURE,
        WIDGET,
        "## Links\n\n[One](../README.md), [two](#Links), [three](https://example.org).",
    )
    write(
        folder,
        "02_more.ipynb",
        "# 02 More\n\n## 2 End",
        "print(1)",
        "1 / 0",
        "print(2)",
    )
    write(folder, "03_dies.ipynb", "# 03 Dies", "import os\n\nos._exit(3)")
    (folder / "04_conflict.ipynb").write_text("<<<<<<< ours\n{}")
    solved = write(folder, "05_last.ipynb", "# 05 Last\n\nEnds.", "assert 1 + 1 == 2")
    notebook = nbformat.read(solved, as_version=4)
    notebook.cells[1].metadata.update(SOLUTION)
    solved.write_bytes(canonical_bytes(notebook))
    (root / "README.md").touch()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "tools.gallery", "build"]
        + ["--notebooks", str(folder), "--out", str(root / "_build")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return SimpleNamespace(
        root=root, folder=folder, out=root / "_build", before=before, done=done
    )


def page(built: SimpleNamespace, name: str) -> str:
    return (built.out / name).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The elements of a page, as tag and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


PAGES = ("index", "01_first_steps", "02_more", "03_dies", "04_conflict", "05_last")
each_page = pytest.mark.parametrize("name", PAGES)


def test_each_failure_is_named_and_the_others_run(built):
    assert built.done.returncode == 1
    assert built.done.stderr.splitlines() == [
        "02_more.ipynb, cell 3 (1 / 0): ZeroDivisionError: division by zero",
        "03_dies.ipynb, cell 2 (import os): the kernel died, of a crash or because "
        "memory ran out",
        "04_conflict.ipynb, not a notebook that can be read (NotJSONError: Notebook "
        "does not appear to be JSON: '<<<<<<< ours\\n{}')",
    ]


def test_progress_is_one_line_for_each(built):
    lines = built.done.stdout.splitlines()
    for number, (name, state) in enumerate(
        [
            ("01_first_steps", "ok"),
            ("02_more", "FAILED"),
            ("03_dies", "FAILED"),
            ("04_conflict", "FAILED"),
            ("05_last", "ok"),
        ]
    ):
        pattern = rf"\[{number + 1}/5\] {name} \.\.\. {state}, \d+ s"
        assert re.fullmatch(pattern, lines[number])
    assert lines[5:] == [f"Gallery: {built.out / 'index.html'}"]


def test_nothing_but_the_gallery_is_left(built):
    now = {path.name: path.read_bytes() for path in built.folder.iterdir()}
    assert now == built.before
    assert {path.name for path in built.root.iterdir()} == {
        "_build",
        "notebooks",
        "README.md",
    }
    assert {f"{name}.html" for name in PAGES} <= {p.name for p in built.out.iterdir()}
    assert {p.name for p in (built.out / "notebooks").iterdir()} == set(built.before)


def test_executed_notebooks_have_outputs_and_a_stamp_where_nothing_failed(built):
    first = nbformat.read(built.out / "notebooks" / "01_first_steps.ipynb", 4)
    assert first.cells[2].outputs[0].text == "42\n"
    assert first.metadata[STAMP]["code_sha256"] == code_sha256(first)
    assert set(first.metadata[STAMP]["versions"]) >= {"python", "torch", "vllm"}
    failed = nbformat.read(built.out / "notebooks" / "02_more.ipynb", 4)
    assert STAMP not in failed.metadata
    assert failed.cells[1].outputs and not failed.cells[3].outputs


def test_a_widget_is_shown_by_its_fallback(built):
    first = nbformat.read(built.out / "notebooks" / "01_first_steps.ipynb", 4)
    assert set(first.cells[4].outputs[0].data) == {"text/plain"}
    assert "widgets" not in first.metadata


def test_pages_hold_code_outputs_and_the_error(built):
    assert "42" in page(built, "01_first_steps.html")
    assert "ZeroDivisionError" in page(built, "02_more.html")
    assert "the kernel died" in page(built, "03_dies.html")
    assert "Show the solution" in page(built, "05_last.html")
    assert "Show the solution" not in page(built, "01_first_steps.html")


def test_pictures_say_where_they_belong(built):
    pictures = Elements(page(built, "01_first_steps.html")).all("img")
    (picture,) = [one for one in pictures if "_images" in one["src"]]
    assert picture["alt"] == "Picture in 01 First <steps>, read in the text below"
    assert (built.out / picture["src"]).exists()


@pytest.mark.parametrize(("lines", "is_drawn"), [(12, True), (3, False)])
def test_a_notebook_without_a_picture_shows_its_report(lines, is_drawn):
    report = new_output("execute_result", {"text/plain": "ok  $1 {x}\n" * lines})
    notebook = new_notebook(cells=[new_code_cell("report", outputs=[report])])
    drawn = base64.b64decode(_first_picture(notebook) or "")
    assert drawn.startswith(b"\x89PNG") is is_drawn


def test_index_has_a_card_for_each(built):
    index = page(built, "index.html")
    cards = [d for d in Elements(index).all("div") if "sd-card " in d.get("class", "")]
    assert len(cards) == 5
    assert "01 First &lt;steps&gt;" in index
    assert index.count("<strong>Failed:</strong>") == 3
    assert "cell 3 (1 / 0): ZeroDivisionError" in index


@each_page
def test_links_lead_to_pages_and_files(built, name):
    for link in Elements(page(built, f"{name}.html")).all("a"):
        target = link.get("href", "").partition("#")[0]
        if target and not target.startswith("https:"):
            assert (built.out / target).exists(), link


def test_links_between_notebooks_become_links_between_pages(built):
    links = [a["href"] for a in Elements(page(built, "01_first_steps.html")).all("a")]
    assert "02_more.html#end" in links  # Sphinx names headings in its own way.
    assert [link for link in links if link.endswith("/README.md.txt")]
    assert {"index.html", "02_more.html", "_sources/01_first_steps.ipynb"} <= set(links)
    assert "https://example.org" in links and "#links" in links


@each_page
def test_pages_need_no_network(built, name):
    text = page(built, f"{name}.html")
    needed = [a for tag, a in Elements(text).found if tag in ("script", "link", "img")]
    sources = [a.get("src") or a.get("href") or "" for a in needed]
    assert not [source for source in sources if re.match(r"(https?:)?//", source)]
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", text)


@each_page
def test_pages_can_be_read_by_everyone(built, name):
    elements = Elements(page(built, f"{name}.html"))
    assert elements.all("html")[0]["lang"] == "en"
    assert re.search(r"<title>\s*\S", page(built, f"{name}.html"))
    assert all("alt" in picture for picture in elements.all("img"))
    assert len(elements.all("main")) == 1
    assert [m for m in elements.all("meta") if m.get("name") == "viewport"]


# --- In place -------------------------------------------------------------------------


def test_refresh_writes_what_ran_and_leaves_what_failed(tmp_path, capsys):
    good = write(tmp_path, "01_good.ipynb", "# 01 Good", "print(1)")
    bad = write(tmp_path, "02_bad.ipynb", "# 02 Bad", "raise ValueError('no')")
    left = write(tmp_path, "03_left.ipynb", "# 03 Left out", "print(1)")
    bad_before, left_before = bad.read_bytes(), left.read_bytes()
    command = ["refresh", "01", "02", "--notebooks", str(tmp_path)]
    assert gallery.main(command) == 1
    assert "02_bad.ipynb, cell 2" in capsys.readouterr().err
    assert bad.read_bytes() == bad_before and left.read_bytes() == left_before
    notebook = nbformat.read(good, as_version=4)
    assert notebook.cells[1].outputs[0].text == "1\n"
    assert notebook.cells[1].execution_count == 1
    assert notebook.metadata[STAMP]["code_sha256"] == code_sha256(notebook)
    assert good.read_bytes() == canonical_bytes(notebook)


def test_format_is_canonical_and_changes_nothing_twice(tmp_path, capsys):
    path = write(
        tmp_path,
        "01_messy.ipynb",
        "# 01 Messy, ü",
        "print(1)",
        widgets={"state": {}},
        language_info={"name": "python", "version": "3.11.2"},
    )
    content = json.loads(path.read_text())
    content["cells"][1]["metadata"] = {
        "execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"},
        "collapsed": True,
        "tags": ["solution"],
    }
    said = ["Prompts: 100%|####| 4/4 [00:00]\n", "W: slow\n"]
    content["cells"][1]["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": lines}
        for lines in (said, said[:1])
    ]
    for text in ("Shards:   0% Completed | 0/1", "batch: 100%|##| 5/5, 1 truncated"):
        shown = {"output_type": "display_data", "metadata": {}}
        content["cells"][1]["outputs"].append(shown | {"data": {"text/plain": text}})
    path.write_text(json.dumps(content))
    command = ["format", "--notebooks", str(tmp_path)]
    assert gallery.main(command) == 0
    assert capsys.readouterr().out == "formatted 01_messy.ipynb\n"
    once = path.read_bytes()
    assert gallery.main(command) == 0
    assert capsys.readouterr().out == ""
    assert path.read_bytes() == once
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[1].metadata == {"tags": ["solution"]}
    assert notebook.cells[1].source == "print(1)"
    slow, bar = notebook.cells[1].outputs
    assert slow.text == "W: slow\n" and "1 truncated" in bar.data["text/plain"]
    assert "ü".encode() in once and once.endswith(b"}\n")


def test_format_names_what_is_no_notebook(tmp_path, capsys):
    (tmp_path / "01_conflict.ipynb").write_text("<<<<<<< ours")
    assert gallery.main(["format", "--notebooks", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("01_conflict.ipynb, not a notebook")
    assert (tmp_path / "01_conflict.ipynb").read_text() == "<<<<<<< ours"


@pytest.mark.parametrize("command", ["build", "refresh", "format"])
def test_unknown_name(tmp_path, capsys, command):
    write(tmp_path, "01_one.ipynb", "# 01 One")
    out = ["--out", str(tmp_path / "out")] if command == "build" else []
    status = gallery.main([command, "7", "--notebooks", str(tmp_path), *out])
    assert status == 1
    assert capsys.readouterr().err == f"no notebook 7*.ipynb in {tmp_path}\n"
    assert not (tmp_path / "out").exists()


def test_names_pick_notebooks_in_their_order(tmp_path):
    for name in ("03_c", "01_a", "02_b"):
        write(tmp_path, f"{name}.ipynb", "# x")
    write(tmp_path, "scratch.ipynb", "# x")

    def found(*names: str) -> list[str]:
        return [path.stem for path in find_notebooks(tmp_path, names)]

    assert found() == ["01_a", "02_b", "03_c"]
    assert found("03", "01") == ["01_a", "03_c"]
    with pytest.raises(FileNotFoundError, match=r"no notebook \*\.ipynb"):
        find_notebooks(tmp_path / "elsewhere")


def test_hash_is_of_the_code_alone():
    def digest(*cells: str, text: str = "# A") -> str:
        made = [new_markdown_cell(text), *map(new_code_cell, cells)]
        return code_sha256(new_notebook(cells=made))

    assert digest("a", "b") == digest("a", "b", text="# B")
    assert len({digest("a", "b"), digest("b", "a"), digest("ab"), digest("a\nb")}) == 4


@pytest.mark.parametrize("first", [None, new_code_cell("print(1)")])
def test_a_notebook_without_a_title_has_a_page(tmp_path, first):
    notebook = new_notebook(cells=[first] if first else [])
    run = Run(tmp_path / "01_bare.ipynb", notebook, 1.0, "cell 1 (x): <Oops>")
    make_pages([run], tmp_path)
    text = (tmp_path / "01_bare.html").read_text()
    assert "01_bare" in text and "&lt;Oops&gt;" in text
    assert "cell 1 (x): &lt;Oops&gt;" in (tmp_path / "index.html").read_text()


# --- Interrupted ----------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_interrupt_ends_the_kernel_and_all_that_is_left(tmp_path):
    family = """\
import os, pathlib, signal, subprocess

child = subprocess.Popen(["sleep", "1000"])
pathlib.Path("pids.txt.part").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.txt.part", "pids.txt")
signal.pause()"""
    folder = tmp_path / "notebooks"
    write(folder, "01_waits.ipynb", "# 01 Waits", family)
    write(folder, "02_next.ipynb", "# 02 Next", "open('next.txt', 'w')")
    builder = subprocess.Popen(
        [sys.executable, "-m", "tools.gallery", "build"]
        + ["--notebooks", str(folder), "--out", str(tmp_path / "_build")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    processes = []
    try:
        assert wait_for((folder / "pids.txt").exists, START_SECONDS)
        pids = (folder / "pids.txt").read_text().split()
        processes = [psutil.Process(int(pid)) for pid in pids]
        os.killpg(builder.pid, signal.SIGINT)  # as a terminal does
        output, errors = builder.communicate(timeout=START_SECONDS)
        _, alive = psutil.wait_procs(processes, timeout=GONE_SECONDS)
        assert alive == []
    finally:
        builder.kill()
        for process in processes:
            if process.is_running():
                process.kill()
    assert builder.returncode == 130
    # The kernel, as it ends, may write before it.
    assert errors.endswith("Interrupted: the running kernel has been ended.\n")
    assert "Traceback" not in errors and "nbclient" not in errors
    assert output == "[1/2] 01_waits ... interrupted\n"
    assert not (folder / "next.txt").exists()
    assert not (tmp_path / "_build" / "index.html").exists()
