"""Every page as a reader meets it: two themes, three widths, no network but the site itself."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.book.conftest import SITE, pages

WIDTHS = (390, 768, 1440)
THEMES = ("light", "dark")
# what sticks out of the page: a box that ends right of the window and does not lie in one that scrolls by itself
STICKING_OUT = """() => {
  const wide = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= wide) return []
  return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > wide + 1)
    .slice(0, 5).map(e => e.outerHTML.slice(0, 120))
}"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", pages())
def test_page(name, theme, reader, keep):
    """Fits at every width, is accessible by axe's rules, asks nothing of the network; its pictures are kept."""
    from axe_playwright_python.sync_playwright import Axe

    one = reader(name, theme, WIDTHS[-1])
    page = one.page
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    first = page.evaluate("window.firstFigure ?? null")
    loaded, out = one.bytes, {}
    folder = SITE / "screenshots" / theme
    folder.mkdir(parents=True, exist_ok=True)
    for width in reversed(WIDTHS):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)  # Plotly redraws a moment after
        out[width] = page.evaluate(STICKING_OUT)
        picture = folder / f"{name.removesuffix('.html').replace('/', '-')}-{width}.png"
        page.screenshot(path=picture, full_page=True)
    page.set_viewport_size({"width": WIDTHS[-1], "height": 900})
    found = Axe().run(page).response["violations"]
    keep(
        f"{name.removesuffix('.html')}-{theme}",
        {
            "page": name,
            "theme": theme,
            "bytes": loaded,
            "first figure (ms)": first,
            "axe": {v["id"]: [v["impact"], len(v["nodes"])] for v in found},
        },
    )
    assert not any(out.values()), out
    bad = [f"{v['id']}: {n['html'][:200]} {n['failureSummary'][:300]}" for v in found for n in v["nodes"][:4]
           if v["impact"] in ("serious", "critical")]  # fmt: skip
    assert not bad, "\n".join(bad)
    assert Counter(page.locator("h1:visible").all_inner_texts()).total() == 1
