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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .execution import (
    ROOT,
    Run,
    UnreadableNotebookError,
    canonical_bytes,
    find_notebooks,
    read_notebook,
    run_all,
)
from .pages import make_pages


def build(paths: Iterable[Path], out: Path) -> list[Run]:
    """Run the notebooks and make the gallery: `out`/index.html and a page for each."""
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    runs = []
    for run in run_all(paths):
        (out / "notebooks" / run.path.name).write_bytes(canonical_bytes(run.notebook))
        runs.append(run)
    make_pages(runs, out)
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
        UnreadableNotebookError: a file is not a notebook; later ones are untouched.
    """
    changed = []
    for path in paths:
        canonical = canonical_bytes(read_notebook(path))
        if path.read_bytes() != canonical:
            path.write_bytes(canonical)
            changed.append(path)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a notebook failed, else 0."""
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
