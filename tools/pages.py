"""Make a gallery of web pages from executed notebooks, with Sphinx's book theme.

The pages work from a folder, without a server and without a network. tools/gallery_site
has Sphinx's configuration.
"""

import base64
import copy
import io
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .execution import STAMP, Run

if TYPE_CHECKING:
    from nbformat import NotebookNode

SITE = Path(__file__).resolve().parent / "gallery_site"
GLOSSARY = SITE.parent.parent / "notebooks" / "glossary.md"
_LEARN = re.compile(r"^\*\*You will be able to\*\*\n\n((?:[-  ].*\n?)+)", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_PICTURE = re.compile(r'src="data:image/png;base64,([^"]+)"')
GREY = "#808080"  # Can be read on light and dark pages.
_CARD = """\
::::{{grid-item-card}} {title}
:link: {name}
:link-type: doc
{picture}
{learn}

:::{{card-footer}}
{state}
:::
::::
"""
_INDEX = """\
# Fast inference notebooks

Thinking models with Unsloth and vLLM, on a GPU or without one: {count} notebooks, run
one after the other in {seconds:.0f} s. Each page has its notebook to download. The
[glossary](glossary.md) explains the words of the field.

:::::{{grid}} 1 2 2 2
:gutter: 3

{cards}
:::::

{tested}

```{{toctree}}
:hidden:

{names}
glossary
```
"""


def make_pages(runs: Sequence[Run], out: Path) -> None:
    """Write `out`/index.html and a page for each notebook.

    Raises:
        RuntimeError: Sphinx failed; what it said is on stderr.
    """
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(SITE, source)
        for run in runs:
            _write_source(run, source)
        shutil.copy(GLOSSARY, source)
        index = _index(runs, source)
        (source / "index.md").write_text(index, encoding="utf-8")
        # There, since myst-nb leaves a folder of its own beside the pages.
        pages, doctrees = str(Path(folder) / "pages"), str(Path(folder) / "doctrees")
        if build_main(["-q", "-b", "html", "-d", doctrees, str(source), pages]):
            raise RuntimeError("Sphinx could not make the gallery's pages")
        shutil.copytree(pages, out, dirs_exist_ok=True)


def _write_source(run: Run, source: Path) -> None:
    """Write the notebook for Sphinx: solutions folded, pictures described."""
    import nbformat

    notebook = copy.deepcopy(run.notebook)
    _describe_pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(lambda m: _carried(m[1], run, source), cell.source)
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata.tags = [*cell.metadata.tags, "hide-cell"]
            cell.metadata.pop("jupyter", None)
            cell.metadata["mystnb"] = {
                **cell.metadata.get("mystnb", {}),
                "code_prompt_show": "Show the solution",
            }
    note = tested_with(run)
    if run.error:
        note = f"```{{error}}\n{_literal(run.error)}\n```"
    if not (notebook.cells and notebook.cells[0].source.startswith("# ")):
        title = nbformat.v4.new_markdown_cell(f"# {_literal(run.title)}")
        notebook.cells.insert(0, title)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    nbformat.write(notebook, source / run.path.name)


def _carried(link: str, run: Run, source: Path) -> str:
    """Return a link's target in the pages: one of them, or a file copied there."""
    file = run.path.parent / link
    if file.suffix == ".ipynb" or file.name == GLOSSARY.name or not file.is_file():
        return link
    (source / "files").mkdir(exist_ok=True)
    # As text: Sphinx would make a page of a Markdown file.
    name = f"{file.name}.txt" if file.suffix == ".md" else file.name
    shutil.copy(file, source / "files" / name)
    return f"files/{name}"


def _describe_pictures(notebook: "NotebookNode") -> None:
    """Give each picture an alternative text: the section that it belongs to."""
    section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ +(.+)", cell.source, re.MULTILINE)
            section = found[-1] if found else section
        if any("image/png" in out.get("data", {}) for out in cell.get("outputs", [])):
            text = f"Picture in {section}, read in the text below"
            cell.metadata["mystnb"] = {"image": {"alt": text}}


def _index(runs: Sequence[Run], source: Path) -> str:
    tested = [tested_with(run) for run in runs if not run.error]
    return _INDEX.format(
        count=len(runs),
        seconds=sum(run.seconds for run in runs),
        cards="\n".join(_card(run, source) for run in runs),
        tested=tested[-1].partition(" in ")[0] if tested else "",
        names="\n".join(run.path.stem for run in runs),
    )


def _card(run: Run, source: Path) -> str:
    """Make a card: the notebook's aims, its time and memory, its first picture."""
    picture = ""
    if data := _first_picture(run.notebook):
        (source / f"{run.path.stem}.png").write_bytes(base64.b64decode(data))
        picture = (
            f":img-top: {run.path.stem}.png\n:img-alt: A picture from it\n"
            ":class-img-top: dark-light"  # It suits dark pages too: see Chart.
        )
    first = run.notebook.cells[0].source if run.notebook.cells else ""
    found = _LEARN.search(first)
    learn = found[1] if found else run.summary
    state = f"{run.seconds:.0f} s"
    if stamp := run.notebook.metadata.get(STAMP):
        state += f", {stamp['memory_mib']:,} MiB of main memory"
    if run.error:
        state = f"**Failed:** {_literal(run.error)}"
    return _CARD.format(
        title=_literal(run.title),
        name=run.path.stem,
        picture=picture,
        learn=re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", learn),  # The card is a link.
        state=state,
    )


def tested_with(run: Run) -> str:
    """Put the stamp into words; return an empty text if the run failed."""
    stamp = run.notebook.metadata.get(STAMP)
    if stamp is None:
        return ""
    versions = ", ".join(f"{name} {v}" for name, v in stamp["versions"].items())
    where = {"cpu": "without a GPU", "cuda": "on a GPU"}[stamp["device"]]
    return (
        f"Run {where} on {stamp['date']} with {versions} in {stamp['seconds']} s and "
        f"{stamp['memory_mib']:,} MiB of main memory."
    )


def _first_picture(notebook: "NotebookNode") -> str | None:
    """Return the first PNG among the outputs, in base64, or a picture of a report."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if picture := data.get("image/png"):
                return picture.replace("\n", "")
            if found := _PICTURE.search(data.get("text/html", "")):
                return found[1]
    return _draw_first_report(notebook)


def _draw_first_report(notebook: "NotebookNode") -> str | None:
    """Draw the first text output of ten lines or more; return a PNG in base64."""
    from matplotlib.figure import Figure

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lines = output.get("data", {}).get("text/plain", "").splitlines()
            if len(lines) < 10:
                continue
            figure, drawn = Figure((6.4, 2.6)), io.BytesIO()
            text = "\n".join(line[:84] for line in lines[:14])
            style = {"family": "monospace", "size": 8.5, "va": "top", "color": GREY}
            figure.text(0.03, 0.96, text, linespacing=1.4, parse_math=False, **style)
            figure.savefig(drawn, format="png", dpi=150, transparent=True)
            return base64.b64encode(drawn.getvalue()).decode()
    return None


def heading_slug(heading: str) -> str:
    """Return the anchor that Jupyter gives a heading."""
    return heading.replace(" ", "-")


def _literal(text: str) -> str:
    """Escape the characters that Markdown would interpret."""
    return re.sub(r"([\\`*_{}\[\]<>$#])", r"\\\1", text)
