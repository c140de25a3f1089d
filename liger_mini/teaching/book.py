"""A Sphinx extension for the book: its pages share one file with plotly.js, so no figure brings a copy."""

from typing import Any

from docutils import nodes

from liger_mini.teaching.figures.display import without_plotlyjs


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", drop_copies)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def drop_copies(app: Any, document: nodes.document) -> None:
    """Take plotly.js out of the outputs on a page."""
    for output in document.findall(nodes.raw):
        output[:] = [nodes.Text(without_plotlyjs(output.astext()))]
