"""The print edition: one PDF of all pages, with page numbers, an outline, and links that lead inside it."""

from __future__ import annotations

import re

import pytest

from tests.book.conftest import SITE


@pytest.fixture(scope="module")
def edition(site, browser):
    """The PDF, written anew."""
    pypdf = pytest.importorskip("pypdf", reason="for the print edition: pip install pypdf")
    from liger_mini.teaching.pdf import print_edition

    count = print_edition(site, SITE / "liger_mini.pdf", browser)
    reader = pypdf.PdfReader(SITE / "liger_mini.pdf")
    assert len(reader.pages) == count
    return reader


@pytest.mark.slow
def test_the_print_edition_has_every_chapter_and_page_numbers(edition):
    titles = [entry.title for entry in edition.outline]
    assert [title[:2] for title in titles if re.match(r"\d\d · (?!Exercises)", title)] == [
        f"{n:02}" for n in range(sum(bool(re.match(r"\d\d · (?!Exercises)", title)) for title in titles))
    ]
    assert len(titles) > 24
    for entry in edition.outline:
        begins = edition.get_destination_page_number(entry)
        words = edition.pages[begins].extract_text()
        assert re.sub(r"\W", "", entry.title)[:12] in re.sub(r"\W", "", words), entry.title
        assert words.rstrip().endswith(str(begins + 1))


@pytest.mark.slow
def test_its_links_lead_into_it(edition):
    """To a page of the PDF, or to an address outside the site; never to the server that printed it."""
    inside, local = 0, []
    for page in edition.pages:
        for annotation in page.get("/Annots", []):
            link = annotation.get_object()
            inside += not isinstance(link.get("/Dest"), (str, type(None)))
            local += [uri for uri in [str(link.get("/A", {}).get("/URI", ""))] if "127.0.0.1" in uri]
    assert inside > 100
    assert [uri for uri in local if not uri.endswith(".ipynb")] == []
