"""The built site, served from this machine alone, in Debian's Chromium.

`make book` builds the site and `make site-test` runs what is here. What the tests saw is kept: pictures in
build/site/screenshots, numbers in build/site/measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from liger_mini.teaching.pdf import PATIENCE, served, settle

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
HTML = SITE / "_build" / "html"


def pages() -> list[str]:
    """Every page of the site with something to read, by its address; empty where no site was built."""
    without_words = {"genindex.html", "py-modindex.html", "search.html", "index.html"}
    found = (path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
    return sorted(page for page in found if page not in without_words)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a site there is nothing to test."""
    if not (HTML / "index.html").is_file():
        for item in items:
            if Path(__file__).parent in item.path.parents and "site" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason="the site is not built; `make site-test` builds and tests it"))


def pytest_terminal_summary(terminalreporter) -> None:
    """All pages together, as the last tests measured them."""
    measured = [json.loads(path.read_text("utf-8")) for path in sorted((SITE / "measured").glob("*.json"))]
    if not measured:
        return
    counted: dict[str, dict[str, int]] = {}
    for rule, (impact, times) in (found for page in measured for found in page["axe"].items()):
        counted.setdefault(impact, {}).setdefault(rule, 0)
        counted[impact][rule] += times
    heaviest = max(measured, key=lambda page: page["bytes"])
    drawn = [page for page in measured if page["first figure (ms)"] is not None]
    terminalreporter.write_line(f"{len(measured)} pages read; axe: {counted or 'nothing'}")
    terminalreporter.write_line(f"heaviest: {heaviest['page']}, {heaviest['bytes'] / 1e6:.2f} MB")
    if drawn:
        slowest = max(drawn, key=lambda page: page["first figure (ms)"])
        terminalreporter.write_line(f"latest first figure: {slowest['page']}, {slowest['first figure (ms)']:.0f} ms")


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site."""
    return HTML


@pytest.fixture(scope="session")
def address(site) -> Iterator[str]:
    """Where the site is served, without a slash at its end."""
    with served(site) as where:
        yield where


class Reader:
    """A page of the site in the browser, and all that went wrong or wanted to leave the site while it was read."""

    def __init__(self, browser, address: str, theme: str, width: int):
        self.address, self.complaints, self.bytes = address, [], 0
        self.context = browser.new_context(
            color_scheme=theme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.route("**/*", self._let_through)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", self._note)

    def _let_through(self, route) -> None:
        inside = route.request.url.startswith((self.address, "data:", "blob:"))
        if not inside:
            self.complaints.append(f"wanted {route.request.url}")
        route.continue_() if inside else route.abort()

    def _note(self, response) -> None:
        self.bytes += int(response.headers.get("content-length", 0))
        if response.status >= 400:
            self.complaints.append(f"{response.status} for {response.url}")

    def open(self, page: str):
        """Go there, and wait until the theme's late script and all figures and formulas are done."""
        self.page.goto(f"{self.address}/{page}", wait_until="load")
        self.page.wait_for_function("document.documentElement.dataset.theme !== ''")
        settle(self.page)
        return self.page


@pytest.fixture
def read(browser, address):
    """read(page, theme, width) -> a Reader there; complaints at the end fail the test."""
    opened = []

    def go(page: str, theme: str = "light", width: int = 1440) -> Reader:
        opened.append(Reader(browser, address, theme, width))
        opened[-1].open(page)
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()
    assert [complaint for one in opened for complaint in one.complaints] == []


@pytest.fixture
def keep():
    """keep(name, numbers): written to build/site/measured/<name>.json."""

    def write(name: str, numbers: dict) -> None:
        folder = SITE / "measured"
        folder.mkdir(exist_ok=True)
        (folder / f"{name.replace('/', '-').replace('.html', '')}.json").write_text(
            json.dumps(numbers, indent=1), "utf-8"
        )

    return write
