"""The gallery's pages of the committed notebooks, in a real Chromium."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from tools.execution import ROOT, STAMP, Run, find_notebooks
from tools.pages import make_pages

# Of these a picture is kept: the cards; folded thinking and a chart.
SHOWN = ("index", "04_thinking_parsing")
# Of a page's two colour schemes only the contrast differs.
AXE = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast"]},
}
SCREENSHOTS = ROOT / "_build" / "browser"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    runs = []
    for path in find_notebooks(ROOT / "notebooks"):
        notebook = nbformat.read(path, as_version=4)
        runs.append(Run(path, notebook, notebook.metadata[STAMP]["seconds"]))
    out = tmp_path_factory.mktemp("site")
    make_pages(runs, out)
    return out


def pages(site: Path) -> list[Path]:
    names = ["index", *(path.stem for path in find_notebooks(ROOT / "notebooks"))]
    return [site / f"{name}.html" for name in names]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_load_without_complaint(browser, site, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(color_scheme=scheme)
    for path in pages(site):
        complaints = []
        page = context.new_page()
        page.on("pageerror", lambda error, to=complaints: to.append(str(error)))
        page.on("requestfailed", lambda request, to=complaints: to.append(request.url))
        page.on(
            "console",
            lambda said, to=complaints: said.type == "error" and to.append(said.text),
        )
        page.on(
            "request",
            lambda request, to=complaints: (
                urlsplit(request.url).scheme.startswith("http")
                and to.append(request.url)
            ),
        )
        page.goto(path.as_uri(), wait_until="load")
        if path.stem in SHOWN:
            page.screenshot(path=SCREENSHOTS / f"gallery_{path.stem}_{scheme}.png")
        assert complaints == [], path.name
        # Code has the same few colours on all of them, and thousands of pieces.
        parts = None if path.stem in SHOWN else {"exclude": [[".highlight"]]}
        found = axe.run(page, parts, AXE[scheme]).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], path.name
        page.close()
    context.close()


def test_links_lead_to_something(browser, site):
    page = browser.new_page()
    anchors, wanted = {}, set()
    for path in pages(site):
        page.goto(path.as_uri())
        ids = "all => all.map(one => one.id)"
        anchors[path.name] = set(page.eval_on_selector_all("[id]", ids))
        hrefs = "all => all.map(one => one.href)"
        wanted |= set(page.eval_on_selector_all("a[href]", hrefs))
    for link in wanted:
        parts = urlsplit(link)
        if parts.scheme != "file":
            continue
        target = Path(unquote(parts.path))
        assert target.exists(), link
        if parts.fragment and target.name in anchors:
            assert unquote(parts.fragment) in anchors[target.name], link
    page.close()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_a_narrow_page_does_not_scroll_sideways(browser, site, script):
    small = {"width": 400, "height": 800}
    page = browser.new_page(viewport=small, java_script_enabled=script)
    for path in pages(site):
        page.goto(path.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 400, path.name
    assert (page.locator("button.copybtn").count() > 10) is script
    page.close()


def wider_than_the_column(page, selector: str) -> list[str]:
    """The texts of the elements that have to be scrolled sideways."""
    return page.eval_on_selector_all(
        selector,
        "all => all.filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => one.textContent)",
    )


def test_an_answer_is_read_without_scrolling_and_no_author_is_made_up(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    for path in pages(site):
        page.goto(path.as_uri())
        assert wider_than_the_column(page, ".cell_output pre") == [], path.name
        assert page.get_by_text("Author name not set").count() == 0
    page.close()


def test_code_of_88_characters_fits_a_window_of_1280_pixels(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    for path in pages(site):
        page.goto(path.as_uri())
        for code in wider_than_the_column(page, ".cell_input pre"):
            assert max(map(len, code.splitlines())) > 88, path.name
    assert page.locator(".bd-sidebar-secondary").is_visible()
    page.close()
