"""Run a notebook in a kernel of its own, and store it in one form."""

import asyncio
import copy
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.internals.machine.devices import RESIDENT_MEMORY
from helpers.memory import MemoryMonitor

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
# Progress of tqdm: true for one moment of one machine.
_PROGRESS = re.compile(r"\d+%(\|| Completed \|)")
_BEGUN = re.compile(r"[^%]*\b0%( Completed \| 0/|\|)")
_WIDGET = "application/vnd.jupyter.widget-view+json"


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
    """A file can't be read as a notebook, such as one with a merge conflict in it.

    Its arguments are the file's name and what is wrong.
    """

    def __str__(self) -> str:
        return ", ".join(self.args)


def read_notebook(path: Path) -> "NotebookNode":
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has many, and lets through those of others
        raise UnreadableNotebookError(
            path.name, f"not a notebook that can be read ({_one_line(error)})"
        ) from error


def code_sha256(notebook: "NotebookNode") -> str:
    """Hash the sources of all code cells, in order: the outputs depend on them."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def canonical_bytes(notebook: "NotebookNode") -> bytes:
    """Serialise a notebook in one form: keys sorted, indented by 1, UTF-8.

    Left out are timestamps, versions of the kernel, widgets' state, what editors add.
    A widget's place is taken by the text or picture that it carries as a fallback, and
    of stderr the bars of progress are left out.
    """
    import nbformat

    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in _CELL_METADATA}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if not _only_progress(one)]
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:
                output.data.pop(_WIDGET, None)
    return (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode()


def _only_progress(output: "NotebookNode") -> bool:
    """Take the bars of progress out of stderr; tell whether nothing else is there.

    Nor is there anything in a widget whose fallback is a bar that stands at 0 %.
    """
    if output.get("name") != "stderr":
        data = {k: v for k, v in output.get("data", {}).items() if k != _WIDGET}
        return [*data] == ["text/plain"] and bool(_BEGUN.match(data["text/plain"]))
    lines = output.text.splitlines(keepends=True)
    output.text = "".join(line for line in lines if not _PROGRESS.search(line))
    return not output.text.strip()


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """List `NN_*.ipynb` of a folder in order; with names, those that begin so.

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

    start = time.monotonic()
    try:
        notebook = read_notebook(path)
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

    client = _client(notebook, path.parent, count)
    monitor = MemoryMonitor(interval_s=0.5)
    monitor.kind = RESIDENT_MEMORY  # On a GPU too: the memory of the kernel.
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


def _client(
    notebook: "NotebookNode", folder: Path, on_cell_execute: Callable[..., None]
) -> "NotebookClient":
    from nbclient import NotebookClient

    return NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=KERNELSPEC["name"],
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # ipykernel's own, not the notebook's
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        on_cell_execute=on_cell_execute,
    )


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
        # What a kernel writes there as it ends is not of the notebook.
        options = {"env": environment, "stderr": subprocess.DEVNULL}
        task = loop.create_task(client.async_execute(**options))
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
    """Make the metadata of a run, for readers and for the test on the code."""
    from helpers.internals.engine.plan import detect_device

    from .measuring import describe_machine

    return {
        **describe_machine(),
        "code_sha256": code_sha256(notebook),
        "device": detect_device(),
        "memory_mib": memory_mib,
        "seconds": round(seconds),
    }


def _describe_cell(notebook: "NotebookNode", index: int) -> str:
    """Describe a cell: its place among all cells, and its first line."""
    lines = notebook.cells[index].source.strip().splitlines() or [""]
    return f"cell {index + 1} ({lines[0].strip()})"


def _one_line(error: Exception) -> str:
    """Return the error's name and message; nbclient's own text is a traceback."""
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
