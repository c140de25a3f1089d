"""What can be seen in the files alone: every link leads somewhere, every figure and picture has words, one h1 a page."""

from __future__ import annotations

import functools
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.book.conftest import HTML, pages


class Page(HTMLParser):
    """What a page links, loads and names."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.images, self.figures = set(), [], [], [], []
        self.headings, self.language, self.words = 0, None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.ids |= {has["id"]} if "id" in has else set()
        self.headings += tag == "h1"
        if tag == "html":
            self.language = has.get("lang")
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        if tag in ("script", "img", "iframe") or (tag == "link" and "stylesheet" in has.get("rel", "")):
            self.loads += [has[name] for name in ("src", "href") if has.get(name)]
        if tag == "img":
            self.images.append(has)
        if tag == "figure":
            self.figures.append([has.get("aria-label") or "", "", False])
        if self.figures and has.get("role") == "img":
            self.figures[-1][2] = bool(has.get("aria-label"))
        if tag == "figcaption":
            self.words = ""

    def handle_data(self, data):
        if self.words is not None:
            self.words += data

    def handle_endtag(self, tag):
        if tag == "figcaption":
            self.figures[-1][1], self.words = self.words, None


@functools.cache
def parsed(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def chapters() -> list[str]:
    """The chapters' pages."""
    return [name for name in pages() if re.match(r"notebooks/\d", name)]


def is_outside(link: str) -> bool:
    return urlsplit(link).scheme not in ("", "data") or bool(urlsplit(link).netloc)


@pytest.mark.parametrize("name", pages())
def test_every_link_leads_somewhere(name, site):
    broken = []
    for link in parsed(site / name).links + parsed(site / name).loads:
        split = urlsplit(link)
        if split.scheme or split.netloc:
            continue
        target = (site / name).parent.joinpath(unquote(split.path)).resolve() if split.path else site / name
        known = target.is_file() and (
            not split.fragment or target.suffix != ".html" or unquote(split.fragment) in parsed(target).ids
        )
        broken += [] if known else [link]
    assert broken == []


@pytest.mark.parametrize("name", pages())
def test_a_page_has_one_heading_its_language_and_words_for_what_it_shows(name, site):
    page = parsed(site / name)
    assert page.headings == 1
    assert page.language == "en"
    assert [image for image in page.images if not image.get("alt")] == []
    wordless = [figure for figure in page.figures if not (figure[0] and len(figure[1]) > 30 and figure[2])]
    assert wordless == []
    assert [load for load in page.loads if is_outside(load)] == []


def test_the_site_has_the_pages_it_should(site):
    """The chapters with figures that draw, the exercises, and the pages to look things up."""
    there = set(pages())
    looked_up = "intro results equivalence experiments commands reference notation glossary bibliography changelog status teaching"
    assert {f"book/{name}.html" for name in looked_up.split()} <= there
    assert len(chapters()) >= 12
    assert all(parsed(HTML / name).figures for name in chapters())


def test_the_reference_takes_no_sentence_for_a_name(site):
    """What napoleon reads as the name of a parameter or an exception is one."""
    page = (site / "book" / "reference.html").read_text("utf-8")
    names = re.findall(r"<li><p><strong>(.*?)</strong>(?: \((.*?)\))?", page)
    assert len(names) > 60
    assert [found for found in names if found[1] or not re.fullmatch(r"\**\w+(, \w+)*", found[0])] == []


@pytest.mark.parametrize("name", chapters())
def test_a_chapter_links_each_word_of_the_glossary_once(name, site):
    found = [urlsplit(link).fragment for link in parsed(site / name).links if "glossary.html#term-" in link]
    assert len(found) >= 5
    assert len(found) == len(set(found))
