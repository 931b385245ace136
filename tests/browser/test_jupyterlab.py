"""The collection in JupyterLab as a reader sees it: a real server, a real Chromium.

Screenshots stay in _build/browser.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import nbformat
import psutil
import pytest
from child import find_child

from helpers.internals.report.lone_cell import HINT

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "_build" / "browser"
START_SECONDS = 60
RUN_SECONDS = 240
GONE_SECONDS = 30
CLOSED = "No Kernel"
WRITTEN = re.compile(r"^[\d,]+ tokens$")  # So many by now, above a live response.


class Lab:
    """What `make lab` starts, over a copy of the collection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "notebooks", folder / "notebooks")
        shutil.copy(ROOT / "README.md", folder)
        (folder / "helpers").symlink_to(ROOT / "helpers")
        places = {
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        private = folder.parent / "private"
        environment = os.environ | {k: str(private / v) for k, v in places.items()}
        environment["PYTHONPATH"] = str(ROOT)
        environment.pop("PYTEST_CURRENT_TEST", None)  # ipykernel heeds it
        self.log = folder.parent / "lab.log"
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "tools.lab", "--no-browser", "--port=0"],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        info = private / "runtime" / f"jpserver-{self.process.pid}.json"
        wait_for(info.exists, START_SECONDS, self.log.read_text)
        wait_for(lambda: info.read_text().endswith("}"), START_SECONDS)
        server = json.loads(info.read_text())
        self.url, self.token = server["url"], server["token"]
        assert self.token, "JupyterLab runs without authentication"

    def kernels(self) -> list[psutil.Process]:
        """Kernels and all that they started, as far as they live."""
        found = self.process.children(recursive=True)
        return [p for p in found if p.is_running() and p.status() != "zombie"]

    def end_kernels(self) -> None:
        """Shut all kernels down as the panel of running kernels does.

        A page that was opened a moment ago may start its own only now.
        """
        headers = {"Authorization": f"token {self.token}"}

        def are_gone() -> bool:
            for kernel in httpx.get(f"{self.url}api/kernels", headers=headers).json():
                url = f"{self.url}api/kernels/{kernel['id']}"
                httpx.delete(url, headers=headers, timeout=START_SECONDS)
            return not self.kernels()

        wait_for(are_gone, GONE_SECONDS)

    def stop(self) -> None:
        family = self.process.children(recursive=True)
        self.process.terminate()
        psutil.wait_procs([self.process], GONE_SECONDS)
        for process in [*family, self.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for(
    condition: Callable[[], object], seconds: float, explain: Callable = str
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab") / "collection")
    yield lab
    lab.stop()


@pytest.fixture(autouse=True)
def last_look(
    browser: "playwright.Browser", request: pytest.FixtureRequest
) -> Iterator[None]:
    """Leave a picture of each window that a test has left open, and close it."""
    yield
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for context in browser.contexts:
        for number, page in enumerate(context.pages):
            page.screenshot(path=SCREENSHOTS / f"{request.node.name}_{number}.png")
        context.close()


class Notebook:
    """One notebook in a window of its own, with the reader's hands."""

    def __init__(
        self,
        browser: "playwright.Browser",
        lab: Lab,
        name: str,
        front_end: str = "lab/workspaces/{stem}/tree",
    ) -> None:
        self.lab = lab
        self.name = name
        self.path = lab.folder / "notebooks" / name
        self.page = browser.new_page(viewport={"width": 1400, "height": 900})
        self.page.set_default_timeout(START_SECONDS * 1000)
        # A workspace of its own, or two windows would open each other's notebooks.
        place = f"{front_end.format(stem=self.path.stem)}/notebooks/{name}"
        self.page.goto(f"{lab.url}{place}?token={lab.token}")
        self.wait_until("idle")

    def wait_until(self, status: str, seconds: float = START_SECONDS) -> None:
        indicator = f".jp-Notebook-ExecutionIndicator[data-status={status}]"
        self.page.locator(indicator).wait_for(timeout=1000 * seconds)

    def menu(self, name: str, item: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=name).click()
        self.page.locator(".lm-Menu-item", has_text=item).first.click()

    def run_all(self) -> None:
        def is_taken() -> bool:
            # A kernel that has only just connected may lose all of it, and is busy by
            # itself as it starts.
            self.menu("Run", "Run All Cells")
            waiting = self.page.locator(".jp-InputPrompt", has_text="[*]")
            with suppress(playwright.TimeoutError):
                waiting.first.wait_for(timeout=5000)
                self.page.wait_for_timeout(1000)
                return waiting.count() or self.page.get_by_text("The kernel").count()
            return False

        wait_for(is_taken, START_SECONDS)

    def run_cell(self, index: int) -> None:
        """Run one cell, as Ctrl-Enter in it does; the kernel takes them in order."""
        prompt = self.cell(index).locator(".jp-InputPrompt")
        wait_for(lambda: "*" not in prompt.inner_text(), START_SECONDS)
        before = prompt.inner_text()

        def is_taken() -> bool:
            # While a notebook is being laid out the focus moves, and a key is lost.
            prompt.click()
            self.page.keyboard.press("Control+Enter")
            self.page.wait_for_timeout(500)
            now = prompt.inner_text()
            return now != before and bool(re.search(r"[*\d]", now))

        wait_for(is_taken, START_SECONDS)

    def end_kernel(self) -> None:
        """Run the last cell until it says that the kernel ends."""
        cells = nbformat.read(self.path, as_version=4).cells
        last = max(i for i, cell in enumerate(cells) if cell.cell_type == "code")
        ends = self.output(last).get_by_text("The kernel ends now")
        self.run_cell(last)
        with suppress(playwright.TimeoutError):  # At once, unless after Run All.
            ends.wait_for(timeout=5000)
            return
        self.run_cell(last)
        ends.wait_for()

    def write(self, index: int, code: str) -> None:
        """Put code in the place of what stands in a cell."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(code)

    def cell(self, index: int) -> "playwright.Locator":
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> "playwright.Locator":
        return self.cell(index).locator(".jp-OutputArea").first

    def wait_for_no_kernel(self) -> None:
        name = self.page.locator(".jp-NotebookPanel-toolbar").get_by_text(CLOSED)
        name.wait_for(timeout=1000 * RUN_SECONDS)

    def save(self) -> nbformat.NotebookNode:
        before = self.path.stat().st_mtime_ns
        self.menu("File", "Save Notebook")

        def is_written() -> bool:
            changed = self.path.stat().st_mtime_ns != before
            return changed and self.path.read_text().endswith("}\n")

        wait_for(is_written, START_SECONDS)
        return nbformat.read(self.path, as_version=4)

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def check_no_dialog(self) -> None:
        assert self.page.locator(".jp-Dialog").count() == 0


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def test_run_all_keeps_the_exercises_alive_and_leaves_nothing(browser, lab) -> None:
    opened = [
        Notebook(browser, lab, "04_thinking_parsing.ipynb"),
        Notebook(browser, lab, "01_environment_verification.ipynb"),
    ]
    for notebook in opened:
        notebook.run_all()
    for notebook in opened:
        cells = nbformat.read(notebook.path, as_version=4).cells
        last = max(i for i, cell in enumerate(cells) if cell.cell_type == "code")
        asks = notebook.output(last).get_by_text("The kernel stays for the exercises")
        asks.wait_for(timeout=1000 * RUN_SECONDS)
        notebook.wait_until("idle")
        notebook.screenshot(f"{notebook.path.stem}_asks")
        tried = next(
            i for i, c in enumerate(cells) if "exercise" in c.metadata.get("tags", [])
        )
        notebook.write(tried, "print(setup.model_name, 'is here')")
        notebook.run_cell(tried)
        notebook.output(tried).get_by_text("tiny-thinker is here").wait_for()
    for notebook in opened:
        notebook.end_kernel()
        notebook.wait_for_no_kernel()
        notebook.check_no_dialog()
        saved = notebook.save()
        code = [cell for cell in saved.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert not [out for out in outputs(saved) if out.output_type == "error"]
        assert "The kernel ends now" in str(code[-1].outputs)
        notebook.screenshot(f"{notebook.path.stem}_end")
    wait_for(lambda: not lab.kernels(), GONE_SECONDS, lambda: str(lab.kernels()))


def test_it_opens_on_the_start_page_with_contents_at_the_side(browser, lab) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{lab.url}?token={lab.token}")
    link = page.locator(".jp-RenderedMarkdown").get_by_role(
        "link", name="01 Environment verification"
    )
    link.wait_for(timeout=1000 * START_SECONDS)
    contents = page.locator(".jp-TableOfContents:visible")
    contents.get_by_text("Start here").wait_for()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "start_page.png")
    link.click()
    page.locator(".jp-NotebookPanel").wait_for()
    contents.get_by_text("Values you may change").wait_for()
    assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0
    lab.end_kernels()


def write_notebook(folder: Path, name: str) -> str:
    """Make a notebook of the cells in tests/children/`name`.py; its file's name."""
    source = find_child(name).read_text(encoding="utf-8")
    cells = [nbformat.v4.new_code_cell(c.strip()) for c in source.split("# %%\n")[1:]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return f"{name}.ipynb"


def test_controls_react_and_leave_their_last_view(browser, lab) -> None:
    name = write_notebook(lab.folder / "notebooks", "browser_widgets")
    notebook = Notebook(browser, lab, name)
    page = notebook.page
    notebook.run_cell(1)
    page.get_by_text(HINT).wait_for()
    notebook.run_cell(0)
    notebook.run_cell(1)
    caption = notebook.output(1).locator("caption")
    caption.get_by_text("temperature 1,").wait_for()
    page.locator(".widget-slider .noUi-handle").first.press("ArrowRight")
    caption.get_by_text("temperature 1.05,").wait_for()
    page.get_by_role("button", name="Sample").click()
    page.get_by_text("name 'released_model' is not defined").first.wait_for()
    assert page.locator("mjx-container").count() == 0  # The label is "$".
    notebook.screenshot("explorer")
    notebook.run_cell(2)
    see_memory_beside(notebook)
    notebook.end_kernel()
    page.get_by_text("The kernel has ended").wait_for()
    notebook.output(2).locator('img[alt*="block +100 MiB"]').wait_for()
    notebook.wait_for_no_kernel()
    notebook.check_no_dialog()
    saved = notebook.save()
    for output in outputs(saved):
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    page.reload()
    notebook.output(1).get_by_text("temperature 1.05,").wait_for()
    assert page.get_by_text("Error displaying widget").count() == 0
    notebook.run_cell(0)  # A fresh kernel.
    notebook.run_cell(1)
    notebook.output(1).get_by_text("temperature 1,").wait_for()
    check_saved_in_between(notebook)


def see_memory_beside(notebook: Notebook) -> None:
    """Open the panel in a view of its own, and see it move and end in a picture."""
    page, panel = notebook.page, notebook.output(2)
    panel.get_by_text(re.compile(r"block: \+10\d MiB")).wait_for()
    panel.locator("svg[role=img]").click(button="right")
    page.locator(".lm-Menu-item", has_text="Create New View for Cell Output").click()
    beside = page.locator(".jp-LinkedOutputView")
    seconds = beside.locator("b", has_text="Resident memory")
    before = seconds.inner_text()
    wait_for(lambda: seconds.inner_text() != before, START_SECONDS)
    notebook.screenshot("memory_panel")


def check_saved_in_between(notebook: Notebook) -> None:
    """What is saved before the last cell is seen again, without its kernel too."""
    notebook.save()
    notebook.page.close()
    notebook.lab.end_kernels()
    again = Notebook(notebook.page.context.browser, notebook.lab, notebook.name)
    again.output(1).get_by_text("temperature 1,").wait_for()
    assert again.page.get_by_text("Error displaying widget").count() == 0
    again.page.close()
    notebook.lab.end_kernels()


def test_the_stop_button_stops_and_a_closed_tab_leaves_nothing(browser, lab) -> None:
    name = write_notebook(lab.folder / "notebooks", "browser_live")
    notebook = Notebook(browser, lab, name)
    page = notebook.page
    for cell in range(5):
        notebook.run_cell(cell)
        if cell == 2:
            take_picture(notebook, cell)
    watch_and_stop(notebook, 4)
    thinking = notebook.output(4).locator("details").get_by_text("ones:").first
    was_open = thinking.is_visible()  # Where it was stopped in mid-thought.
    notebook.output(4).locator("summary").click()
    assert thinking.is_visible() is not was_open
    notebook.screenshot("stopped")
    notebook.run_cell(5)
    notebook.output(5).get_by_text("Generating ... ").wait_for()
    notebook.screenshot("generating")
    notebook.menu("Kernel", "Interrupt Kernel")
    notebook.output(5).get_by_text("KeyboardInterrupt").first.wait_for()
    notebook.wait_until("idle")  # Else the kernel drops the next cell with this one.
    notebook.run_cell(6)
    notebook.output(6).get_by_text(WRITTEN).first.wait_for()
    notebook.menu("Kernel", "Interrupt Kernel")
    notebook.output(6).get_by_text("stopped").first.wait_for()
    notebook.wait_until("idle")
    notebook.run_cell(6)
    notebook.output(6).get_by_text(WRITTEN).first.wait_for()
    page.close()
    assert lab.kernels()
    lab.end_kernels()


def take_picture(notebook: Notebook, cell: int) -> None:
    """Unfold the thinking of a finished response: the README's picture."""
    output = notebook.output(cell)
    output.get_by_text("42").last.wait_for(timeout=1000 * RUN_SECONDS)
    output.locator("summary").click()
    output.locator("details").get_by_text("ones:").first.wait_for()
    notebook.screenshot("response")


def watch_and_stop(notebook: Notebook, cell: int) -> None:
    """See the thinking while it is written, and press the button."""
    live = notebook.output(cell)
    live.get_by_text(WRITTEN).first.wait_for(timeout=1000 * RUN_SECONDS)
    live.get_by_text("ones:").first.wait_for()
    notebook.screenshot(f"live_{cell}")
    live.locator("button", has_text="Stop").click()
    live.get_by_text("abort True").wait_for()
    notebook.wait_until("idle")


@pytest.mark.parametrize("theme", ["Dark", "Light"])  # The last one stays.
@pytest.mark.parametrize("name", ["01_environment_verification", "05_batch_inference"])
def test_a_narrow_window_shows_reports_and_tables_whole(
    browser, lab, name, theme
) -> None:
    """As committed, so not trusted yet: the environment's report, models, a batch."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    notebook = Notebook(browser, lab, f"{name}.ipynb")
    page = notebook.page
    if page.locator("#filebrowser").is_visible():  # It would leave no room.
        page.locator('.jp-SideBar [data-id="filebrowser"]').click()
    notebook.menu("Settings", "Theme")
    page.get_by_text(f"JupyterLab {theme}", exact=True).click()
    body = page.locator(f'body[data-jp-theme-name="JupyterLab {theme}"]')
    body.wait_for(state="attached")
    page.set_viewport_size({"width": 500, "height": 900})
    page.locator(".jp-OutputArea-output table").first.scroll_into_view_if_needed()
    wait_for(lambda: not too_wide(page), 10, lambda: too_wide(page))
    notebook.screenshot(f"narrow_{name}_{theme.lower()}")
    found = axe.run(page, ".jp-OutputArea-output table").response["violations"]
    assert [v for v in found if v["impact"] in ("serious", "critical")] == []
    page.close()
    lab.end_kernels()


def too_wide(page: "playwright.Page") -> list[str]:
    return page.locator(".jp-OutputArea-output").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1)"
        ".map(one => `${one.scrollWidth} > ${one.clientWidth}: ${one.innerText}`)"
    )


def test_notebook_7_runs_to_its_end_and_shows_no_kernel(browser, lab) -> None:
    name = write_notebook(lab.folder / "notebooks", "browser_widgets")
    notebook = Notebook(browser, lab, name, front_end="notebooks")
    page = notebook.page
    notebook.run_all()
    page.get_by_text("The kernel stays for the exercises").wait_for()
    notebook.run_cell(2)  # On a busy machine Run All may have to be pressed twice.
    notebook.output(2).get_by_text(re.compile(r"block: \+10\d MiB")).wait_for()
    moved = notebook.output(1).get_by_text("temperature 2,")

    def is_moved() -> bool:
        # While a notebook is being laid out the focus moves, and a key is lost.
        page.locator(".widget-slider .noUi-handle").first.press("End")
        page.wait_for_timeout(500)
        return moved.count() > 0

    wait_for(is_moved, START_SECONDS)
    notebook.end_kernel()
    page.get_by_text("The kernel has ended").wait_for()
    notebook.wait_for_no_kernel()
    notebook.check_no_dialog()
    notebook.screenshot("notebook_7_end")
    for output in outputs(notebook.save()):
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    wait_for(lambda: not lab.kernels(), GONE_SECONDS, lambda: str(lab.kernels()))
