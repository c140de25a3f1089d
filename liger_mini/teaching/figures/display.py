"""How a figure reaches a reader: live in a notebook, and as HTML with its words in pages that have no kernel.

The reader's Plotly renderer draws it. Where that renderer only hands the figure to JupyterLab, VS Code or nteract,
as Plotly chooses there by itself, the output also carries HTML, and the first such output of a notebook brings
plotly.js along: an exported notebook shows its figures without a network.
"""

from __future__ import annotations

import html
import re
import uuid
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from IPython import get_ipython
from IPython.display import display
from plotly.io.base_renderers import PlotlyRenderer
from plotly.offline import get_plotlyjs

FIGURE_JS = Path(__file__).with_name("figure.js")
_carrier: tuple[str | None, int] | None = None  # the cell, and its run, whose output brought plotly.js


class Figure(go.Figure):
    """A Plotly figure with alt text that can also be seen where no front end knows Plotly's own MIME type."""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(*args, **kwargs)
        if _left_to_the_front_end() and self.layout.meta:
            bundle |= {"text/html": for_notebook(self), "text/plain": alt_text(self)}
        return bundle

    def _ipython_display_(self) -> None:
        if pio.renderers.render_on_display and _left_to_the_front_end():
            self.show()
        else:
            super()._ipython_display_()

    def show(self, *args: Any, **kwargs: Any) -> None:
        """As Plotly's own; without arguments the output carries the HTML, too."""
        if args or kwargs or not _left_to_the_front_end():
            super().show(*args, **kwargs)
        else:
            display(self._repr_mimebundle_(), raw=True)


def _left_to_the_front_end() -> bool:
    """Whether the reader's renderer writes Plotly's MIME type and nothing else."""
    default = pio.renderers.default
    return bool(default) and all(isinstance(pio.renderers[name], PlotlyRenderer) for name in default.split("+"))


def alt_text(figure: go.Figure) -> str:
    """The words that stand for the figure."""
    return figure.layout.meta["alt"]


def as_html(figure: go.Figure, include_plotlyjs: bool = False) -> str:
    """The figure as interactive HTML: a name, the plot, its words; the page must bring `scripts` unless they are included.

    What draws it, figure.js beside this module, makes a keyboard's sliders of ``layout.meta["controls"]`` and a table on
    request. The script that calls it is a module, so it runs once the whole page is read.

    Raises:
        ValueError: a figure without alt text, or without a title.
    """
    meta, name = figure.layout.meta or {}, figure.layout.title.text
    if not meta.get("alt") or not name:
        missing = "alt text: call `described(figure, words)`" if name else "a title: `new_figure` takes one"
        raise ValueError(f"a figure without {missing}; whoever cannot see it needs both")
    plot, name = f"figure-{uuid.uuid4()}", html.escape(name.replace("<br>", " "))
    height = meta.get("height") or figure.layout.height or 450  # 450: Plotly's own
    content = (figure.to_json() or "").replace("</", "<\\/")  # no word in it ends the script
    return (
        f'{scripts() if include_plotlyjs else ""}<figure role="group" aria-label="{name}" style="margin:1.5rem 0">'
        f'<div class="title" aria-hidden="true" style="font-weight:600">{name}</div><div id="{plot}" role="img" '
        f'class="plotly-graph-div" aria-label="{name}" aria-describedby="{plot}-words" style="height:{height}px"></div>'
        f'<figcaption id="{plot}-words" style="font-size:.85em">{html.escape(meta["alt"])}</figcaption>'
        f'<script type="application/json">{content}</script><script type="module">drawFigure("{plot}")</script></figure>'
    )


def for_notebook(figure: go.Figure) -> str:
    """The figure as HTML for the output of the running cell; the notebook's first one includes plotly.js."""
    return as_html(figure, include_plotlyjs=_brings_plotlyjs())


def _brings_plotlyjs() -> bool:
    """Whether the running cell's output has to bring plotly.js: the first to show a figure, each time it runs."""
    global _carrier
    shell = get_ipython()
    if shell is None:
        return False
    cell, run = request().get("metadata", {}).get("cellId"), shell.execution_count
    if _carrier is None or (cell is not None and cell == _carrier[0] and run != _carrier[1]):
        _carrier = (cell, run)
        return True
    return False


def request() -> dict[str, Any]:
    """The message that asked the kernel to run this cell; empty outside a Jupyter kernel."""
    return getattr(get_ipython(), "get_parent", dict)()


def scripts() -> str:
    """plotly.js and what draws the course's figures with it, for a page that stands alone."""
    return f"<script data-plotlyjs>{get_plotlyjs()}\n{FIGURE_JS.read_text('utf-8')}</script>"


def without_plotlyjs(page: str) -> str:
    """The HTML less its copy of plotly.js and figure.js, for pages that load them from files."""
    return re.sub(r"<script data-plotlyjs>.*?</script>", "", page, flags=re.DOTALL)
