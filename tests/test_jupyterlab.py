"""The collection in JupyterLab as a reader sees it: a real server, a real Chromium.

Screenshots stay in _build/browser.
"""

import json
import os
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

from tools.browser import HOW_TO_GET_CHROMIUM, find_chromium, launch

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT / "_build" / "browser"
START_SECONDS = 60
RUN_SECONDS = 240
GONE_SECONDS = 30
CLOSED = "No Kernel"


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
        """Shut each kernel down as the panel of running kernels does."""
        headers = {"Authorization": f"token {self.token}"}
        for kernel in httpx.get(f"{self.url}api/kernels", headers=headers).json():
            url = f"{self.url}api/kernels/{kernel['id']}"
            httpx.delete(url, headers=headers, timeout=START_SECONDS)
        wait_for(lambda: not self.kernels(), GONE_SECONDS)

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


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    if find_chromium() is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_CHROMIUM)
        pytest.skip(HOW_TO_GET_CHROMIUM)
    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        yield browser
        browser.close()


class Notebook:
    """One notebook in a window of its own, with the reader's hands."""

    def __init__(self, browser: "playwright.Browser", lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.path = lab.folder / "notebooks" / name
        self.page = browser.new_page(viewport={"width": 1400, "height": 900})
        self.page.set_default_timeout(START_SECONDS * 1000)
        # A workspace of its own, or two windows would open each other's notebooks.
        workspace = f"lab/workspaces/{self.path.stem}/tree/notebooks/{name}"
        self.page.goto(f"{lab.url}{workspace}?token={lab.token}")
        self.wait_until("idle")

    def wait_until(self, status: str, seconds: float = START_SECONDS) -> None:
        indicator = f".jp-Notebook-ExecutionIndicator[data-status={status}]"
        self.page.locator(indicator).wait_for(timeout=1000 * seconds)

    def menu(self, name: str, item: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=name).click()
        self.page.locator(".lm-Menu-item", has_text=item).first.click()

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def wait_for_no_kernel(self) -> None:
        name = self.page.locator(".jp-NotebookPanel-toolbar").get_by_text(CLOSED)
        name.wait_for(timeout=1000 * RUN_SECONDS)

    def save(self) -> nbformat.NotebookNode:
        before = self.path.stat().st_mtime_ns
        self.menu("File", "Save Notebook")
        wait_for(lambda: self.path.stat().st_mtime_ns != before, START_SECONDS)
        return nbformat.read(self.path, as_version=4)

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def check_no_dialog(self) -> None:
        assert self.page.locator(".jp-Dialog").count() == 0


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def test_the_collection_runs_to_its_end_and_leaves_nothing(browser, lab) -> None:
    opened = [
        Notebook(browser, lab, "04_thinking_parsing.ipynb"),
        Notebook(browser, lab, "01_environment_verification.ipynb"),
    ]
    for notebook in opened:
        notebook.run_all()
    for notebook in opened:
        notebook.wait_for_no_kernel()
        notebook.check_no_dialog()
        saved = notebook.save()
        code = [cell for cell in saved.cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in code]
        assert counts == list(range(1, len(code) + 1))
        assert not [out for out in outputs(saved) if out.output_type == "error"]
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
