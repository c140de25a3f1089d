"""Every page as a reader meets it: two themes, three widths, no network but the site itself."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from liger_mini.support.records import recorded
from tests.book.conftest import SITE, pages

WIDTHS = (390, 768, 1440)
MEGABYTES = 8
PICTURED = {390: "dark", 768: "light", 1440: "light"}
TOLERATED = {  # axe's rules that may find something moderate or minor -> why that stays
    "empty-table-header": "Markdown has no other way to write a table's empty corner",
}
# inside a plot and a formula there is nothing to read but what their names say; code is looked at once, below
SKIPPED = {"exclude": [[".main-svg"], ["mjx-container"], [".highlight"]]}
# axe's other rules do not depend on colours, so they run once, in the light
RULES = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
OPTIONS = {"resultTypes": ["violations"], "preload": False}
# a figure is as wide as its place: Plotly draws anew a moment after the window has changed
FITTED = """() => [...document.querySelectorAll('figure .plotly-graph-div')].every(
  g => Math.abs(g.querySelector('.main-svg').clientWidth - g.clientWidth) < 2)"""
# what sticks out of the page
STICKING_OUT = """() => {
  const wide = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= wide) return []
  const boxed = e => e && (getComputedStyle(e).overflowX !== 'visible' || boxed(e.parentElement))
  return [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > wide + 1 && !boxed(e.parentElement.closest('body *')))
    .slice(0, 5).map(e => e.outerHTML.slice(0, 120))
}"""


def audit(page, context, **more) -> list[dict]:
    """What axe finds on a page."""
    from axe_playwright_python.sync_playwright import Axe

    return Axe().run(page, context=context, options={**OPTIONS, **more}).response["violations"]


def grave(found: list[dict]) -> list[str]:
    """The serious and critical findings, with the elements they are about."""
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for violation in found
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
    ]


def in_every_width(page, name: str, theme: str) -> list[str]:
    """What sticks out of the page, and its pictures: each width and each theme, or with EVERY_PICTURE=1 each in each."""
    folder = SITE / "screenshots" / theme
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for width in WIDTHS[::-1]:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(FITTED)
        out += [f"{width}: {element}" for element in page.evaluate(STICKING_OUT)]
        if os.environ.get("EVERY_PICTURE") or PICTURED[width] == theme:
            path = folder / f"{name.removesuffix('.html').replace('/', '-')}-{width}.png"
            page.screenshot(path=path, full_page=True)
    page.set_viewport_size({"width": WIDTHS[-1], "height": 900})
    page.wait_for_function(FITTED)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", pages())
def test_a_page_fits_and_can_be_read(name, read, keep):
    """At every width, in both themes, without any request to elsewhere; its pictures are kept."""
    reader = read(name)
    page, loaded = reader.page, reader.bytes
    first = page.evaluate("performance.getEntriesByName('figure drawn')[0]?.startTime ?? null")
    out, found = [], []
    for theme, rules in RULES.items():
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        out += in_every_width(page, name, theme)
        found += audit(page, SKIPPED, **rules)
    axe = {violation["id"]: [violation["impact"], len(violation["nodes"])] for violation in found}
    keep(name, {"page": name, "bytes": loaded, "first figure (ms)": first, "axe": axe})
    assert out == []
    assert grave(found) == []
    assert {rule for rule in axe if rule not in TOLERATED} == set()
    assert loaded < MEGABYTES * 1_000_000
    assert page.locator("h1:visible").count() == 1


@pytest.mark.slow
def test_the_page_begins_in_the_readers_theme(read):
    assert [
        read("book/intro.html", theme).page.evaluate("document.documentElement.dataset.theme") for theme in RULES
    ] == list(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("theme", RULES)
def test_code_has_contrast(theme, read):
    page = read("notebooks/03-gated-recurrences.html", theme).page
    assert grave(audit(page, {"include": [[".highlight"]]}, runOnly=["color-contrast"])) == []


def with_sliders() -> list[str]:
    """The pages on which a figure has sliders, as their files say."""
    from tests.book.conftest import HTML

    return [name for name in pages() if '"controls":{' in (HTML / name).read_text("utf-8")]


ANOTHER = """([figure, drawing, words]) => figure.querySelector('.main-svg').innerHTML !== drawing
  && figure.querySelector('figcaption').innerText !== words"""


@pytest.mark.slow
@pytest.mark.parametrize("name", with_sliders())
def test_sliders_move_their_figures_by_keyboard(name, read):
    """Each control of each figure: another drawing, other words; and it says its value."""
    page = read(name).page
    figures = page.locator("figure:has(.controls)")
    assert figures.count() > 0
    for figure in figures.all():
        drawing, words = figure.locator(".main-svg").first, figure.locator("figcaption")
        for control in figure.locator("input[type=range]").all():
            assert control.evaluate("input => input.closest('label').innerText").strip()
            before = [drawing.inner_html(), words.inner_text()]
            value = control.get_attribute("aria-valuetext")
            control.focus()
            control.press("End")
            page.wait_for_function(ANOTHER, arg=[figure.element_handle(), *before])
            assert control.get_attribute("aria-valuetext") != value


@pytest.mark.slow
def test_a_figure_gives_its_numbers_as_a_table(read):
    page = read("book/intro.html").page
    figure = page.locator("figure").first
    figure.locator("summary").click()
    rows = figure.locator("details table tbody tr")
    rows.nth(5).wait_for()  # a browser tells that something was opened a moment later
    assert rows.first.locator("td").count() >= 4
    assert "Transformer" in figure.locator("details thead").inner_text()


@pytest.mark.slow
def test_figures_follow_the_theme(read):
    page = read("book/intro.html", "light").page
    ink = "getComputedStyle(document.querySelector('figure .xtitle')).fill"
    light = page.evaluate(ink)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"{ink} !== '{light}'")
    assert (light, page.evaluate(ink)) == ("rgb(26, 26, 26)", "rgb(232, 232, 232)")


def forms(structure):
    """How many forms of a structure were compared with float64: naive, chunked, Triton, …"""
    return len({row["backend"] for row in recorded("equivalence-cpu")["rows"] if row["structure"] == structure})


@pytest.mark.slow
def test_results_can_be_filtered(read):
    page = read("book/results.html").page
    page.get_by_label("structure").select_option("gla")
    page.get_by_label("number type").select_option("bfloat16")
    page.get_by_label("machine").select_option(index=1)
    rows = page.locator(".matrix tbody tr:visible")
    expect(rows).to_have_count(forms("gla"))
    assert all(
        "gla" in words and "bfloat16" in words and "equivalence-cpu.json, recorded 20" in words
        for words in rows.all_inner_texts()
    )
    assert page.locator(".filters output").inner_text().startswith(f"{forms('gla')} of ")


@pytest.mark.slow
def test_the_matrix_can_be_filtered(read):
    page = read("book/equivalence.html").page
    rows = page.locator(".matrix tbody tr:visible")
    every = rows.count()
    page.get_by_label("structure").select_option("kda")
    page.get_by_label("number type").select_option("bfloat16")
    expect(rows).to_have_count(forms("kda"))
    assert forms("kda") < every
    assert all("kda" in words and "within" in words for words in rows.all_inner_texts())


WALKED = (
    "book/intro.html",
    "book/results.html",
    "notebooks/02-gates-from-keys.html",
    "notebooks/06-liger-attention.html",
    "notebooks/exercises/01-exercises.html",
)
STOPS = 60
TERMS = {  # what a reader would look for -> a page that has to be among the answers
    "half-life": "notebooks/02-gates-from-keys",
    "feature map": "notebooks/01-attention-to-recurrence",
    "chunked": "notebooks/04-the-chunked-form",
    "Triton": "notebooks/05-triton-kernels",
    "window": "notebooks/06-liger-attention",
    "AutoModelForCausalLM": "notebooks/07-linearize-a-model",
    "LoRA": "notebooks/08-lora-recovery",
    "branch ablation": "notebooks/09-does-the-recurrence-work",
    "crossover": "notebooks/10-speed",
    "delta rule": "notebooks/11-the-delta-rule",
    "HGRN2": "notebooks/03-gated-recurrences",
    "log_gate": "book/reference",
    "gated_recurrence": "book/reference",
    "sliding_window_attention": "book/reference",
    "linearize": "book/reference",
    "branch_ablation": "book/reference",
    "temper": "book/glossary",
}


@pytest.mark.slow
def test_search_finds_terms_symbols_and_names(read):
    reader = read("search.html")
    missed = []
    for term, where in TERMS.items():
        reader.page.goto(f"{reader.address}/search.html?q={term}", wait_until="load")
        reader.page.wait_for_function(
            "/found|did not match/.test(document.querySelector('.search-summary')?.textContent)"
        )
        links = reader.page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
        if not any(where in link for link in links):
            missed.append((term, where, links[:5]))
    assert missed == []


FOCUSED = """() => { const e = document.activeElement, how = getComputedStyle(e)
return {name: e.innerText || e.getAttribute('aria-label') || e.closest('label')?.innerText || e.title || '',
        element: e.outerHTML.slice(0, 120), tag: e.tagName,
        seen: how.opacity > 0.5 && (how.outlineStyle !== 'none' || how.boxShadow !== 'none')} }"""


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
@pytest.mark.parametrize("skip", [False, True], ids=["from the top", "from the text on"])
def test_the_keyboard_reaches_the_page_and_shows_where_it_is(name, skip, read):
    """The first stop skips the navigation; every stop has a name; where one is can be seen."""
    page = read(name).page
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED)["name"] == "Skip to main content"
    if skip:
        page.keyboard.press("Enter")
    stops = []
    while len(stops) < STOPS:
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at["tag"] == "BODY":  # the page has no more
            break
        stops.append(at)
    assert len(stops) > 8
    assert [at["element"] for at in stops if not at["name"].strip()] == []
    assert [at["element"] for at in stops if not at["seen"]] == []
