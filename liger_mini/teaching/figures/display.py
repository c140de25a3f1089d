"""How a figure reaches a reader: live in a notebook, and as HTML with its words in pages that have no kernel.

The reader's Plotly renderer draws it. Where that renderer only hands the figure to JupyterLab, VS Code or nteract,
as Plotly chooses there by itself, the output also carries HTML, and the first such output of a notebook brings
plotly.js along: an exported notebook shows its figures without a network.
"""

from __future__ import annotations

import html
import re
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from IPython import get_ipython
from IPython.display import display
from plotly.io.base_renderers import PlotlyRenderer
from plotly.offline import get_plotlyjs

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
    """The figure as interactive HTML with its words; the page must bring plotly.js unless it is included.

    The script is a module, so it runs once the whole page is read: plotly.js may stand anywhere in it.
    """
    plot = figure.to_html(
        full_html=False,
        auto_play=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    plot = re.sub(r'<script(?: type="text/javascript")?>', '<script type="module">', plot)
    words = html.escape(alt_text(figure))
    return (
        f'{_plotlyjs() if include_plotlyjs else ""}<figure role="group" aria-label="{words}" style="margin:1.5rem 0">'
        f'{plot}<figcaption style="color:#555;font-size:.85em">{words}</figcaption></figure>'
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


def _plotlyjs() -> str:
    return f"<script data-plotlyjs>{get_plotlyjs()}</script>"


def without_plotlyjs(page: str) -> str:
    """The HTML less its copy of plotly.js, for pages that load it from a file of its own."""
    return re.sub(r"<script data-plotlyjs>.*?</script>", "", page, flags=re.DOTALL)
