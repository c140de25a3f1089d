"""The book's print edition: every page of the built site in one PDF, by a headless Chromium; no TeX."""

from __future__ import annotations

import functools
import http.server
import io
import posixpath
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
MARGINS = {"top": "16mm", "bottom": "18mm", "left": "14mm", "right": "14mm"}
DRAWN = "[...document.querySelectorAll('figure .plotly-graph-div')].every(g => g.querySelector('.main-svg'))"
PATIENCE = 400_000  # milliseconds; also where many share few cores
NUMBERS = "<style>div{{height:297mm;position:relative;break-after:page}}p{{position:absolute;bottom:6mm;width:210mm;text-align:center;font:9pt sans-serif;margin:0}}body{{margin:0}}</style>{}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: Any) -> None:
        """No line for each request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder on a port of this machine: its address, without a slash at the end."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser, Playwright's handle of it.

    Raises:
        RuntimeError: there is no Chromium on this machine; the message says how to install one.
    """
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise RuntimeError(
            "no Chromium here; install one: apt-get install chromium (macOS: brew install --cask chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def in_order(html: Path) -> list[str]:
    """The site's pages in the order of its table of contents."""
    first = "book/intro.html"
    sidebar = (html / first).read_text("utf-8").split('aria-label="Main"', 1)[1].split("</nav>", 1)[0]
    links = re.findall(r'class="(?:current )?reference internal" href="([^"#]*\.html)"', sidebar)
    return list(dict.fromkeys([first, *(posixpath.normpath(f"book/{link}") for link in links)]))


def print_edition(html: Path, out: Path, browser: Any) -> int:
    """Write all pages of a built site into one PDF, with an outline, page numbers, and links that lead inside it.

    Args:
        html: the folder of the built site. out: the file to write. browser: as `chromium` gives one.
    Returns: how many pages it has.
    """
    from pypdf import PdfReader, PdfWriter

    pages = in_order(html)
    with served(html) as address:
        page = browser.new_page(color_scheme="light", viewport={"width": 800, "height": 1100})
        page.set_default_timeout(PATIENCE)
        parts = {name: PdfReader(io.BytesIO(_printed(page, f"{address}/{name}"))) for name in pages}
        count = sum(len(part.pages) for part in parts.values())
        page.set_content(NUMBERS.format("".join(f"<div><p>{i + 1}</p></div>" for i in range(count))))
        numbers = PdfReader(io.BytesIO(page.pdf(format="A4")))
    writer = PdfWriter()
    begins: dict[str, int] = {}
    for name, part in parts.items():
        begins[name] = len(writer.pages)
        for sheet in part.pages:
            writer.add_page(sheet)
        title = part.metadata.title if part.metadata else None
        writer.add_outline_item((title or name).split(" — ")[0], begins[name])
    for sheet, number in zip(writer.pages, numbers.pages):
        sheet.merge_page(number)
    for name, part in parts.items():
        for i in range(begins[name], begins[name] + len(part.pages)):
            _lead_inside(writer, i, name, part, begins, address)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        writer.write(file)
    return count


def settle(page: Any) -> None:
    """Wait until a page's figures are drawn and its formulas are set."""
    page.wait_for_function(DRAWN)
    page.evaluate("window.MathJax?.startup?.promise?.then(() => true)")


def _printed(page: Any, address: str) -> bytes:
    """One page of the site, its figures drawn and its foldable parts open."""
    page.goto(address, wait_until="load")
    settle(page)
    page.evaluate("document.querySelectorAll('.bd-article details').forEach(d => { d.open = !d.closest('figure') })")
    return page.pdf(format="A4", margin=MARGINS, print_background=True)


def _lead_inside(writer: Any, i: int, name: str, part: Any, begins: dict[str, int], address: str) -> None:
    """Links of page i, which belongs to the site's page `name`, that lead to the site lead to its place in the file."""
    from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject, NumberObject

    def place(target: str, fragment: str) -> ArrayObject | None:
        if target not in begins:
            return None
        named = part.named_destinations.get(f"/{fragment}") or part.named_destinations.get(fragment)
        if target == name and named is not None:
            sheet, top = begins[name] + part.get_destination_page_number(named), named.top
        else:
            sheet, top = begins[target], None
        ref = writer.pages[sheet].indirect_reference
        height = NullObject() if top is None else FloatObject(top)
        return ArrayObject([ref, NameObject("/XYZ"), NumberObject(0), height, NullObject()])

    for annotation in writer.pages[i].get("/Annots", []):
        link = annotation.get_object()
        uri = str(link.get("/A", {}).get("/URI", ""))
        if uri.startswith(address):
            split = urlsplit(uri)
            found = place(split.path.lstrip("/"), unquote(split.fragment))
        elif "/Dest" in link and isinstance(link["/Dest"], str):
            found = place(name, str(link["/Dest"]).lstrip("/"))
        else:
            continue
        if found is not None:
            link.pop("/A", None)
            link[NameObject("/Dest")] = found


if __name__ == "__main__":
    with chromium() as started:
        print(f"{print_edition(Path(sys.argv[1]), Path(sys.argv[2]), started)} pages in {sys.argv[2]}")
