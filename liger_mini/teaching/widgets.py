"""Widgets of the notebooks: live in Jupyter, and in the book a static twin made by the same function."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import torch
from IPython.display import HTML
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.teaching.figures.display import Figure, alt_text, as_html, for_notebook, request
from liger_mini.teaching.figures.theme import with_slider


class WithTwin(ipywidgets.VBox):
    """A widget that also carries HTML for pages without a kernel; Jupyter shows the one, an export or the book the other."""

    def __init__(self, children: Sequence[ipywidgets.Widget], twin: Figure | HTML):
        super().__init__(children)
        self._twin = twin

    @property
    def twin(self) -> str:
        """The HTML; a figure in it needs a page with plotly.js."""
        return as_html(self._twin) if isinstance(self._twin, Figure) else self._twin.data

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        twin = for_notebook(self._twin) if isinstance(self._twin, Figure) else self.twin
        return {**super()._repr_mimebundle_(**kwargs), "text/html": twin}


def somebody_is_there() -> bool:
    """Whether a person may move a slider: what only executes a notebook tells its kernel that no input will come.

    `jupyter nbconvert --execute` and nbmake do. Widgets would outlive their kernel there, with megabytes of state,
    and nbconvert would prefer them to their twins; so the notebook gets the twins alone.
    """
    return request().get("content", {}).get("allow_stdin", True)


def explore(draw: Callable[..., go.Figure], **controls: Sequence[Any]) -> WithTwin | Figure:
    """A figure with a slider for each argument of `draw`; the twin is one slider over all combinations.

    Every setting is drawn once for the twin, so one that `draw` refuses shows at once, not under a reader's hand.

    Args:
        draw: keyword arguments -> a figure with alt text; every figure has the same traces.
        controls: argument -> the values its slider offers, the first one shown first.
    Returns: the widget, or only its twin where nobody is there to use it.
    """
    twin = with_slider(draw, **controls)
    if not somebody_is_there():
        return twin
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(str(value), value) for value in values], description=name.replace("_", " ")
        )
        for name, values in controls.items()
    }
    view = go.FigureWidget(draw(**{name: slider.value for name, slider in sliders.items()}))
    words = ipywidgets.HTML(html.escape(alt_text(view)))

    def redraw(_=None) -> None:
        new = draw(**{name: slider.value for name, slider in sliders.items()})
        with view.batch_update():
            for old, trace in zip(view.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
            view.layout.update(new.layout.to_plotly_json(), overwrite=True)
        words.value = html.escape(alt_text(new))

    for slider in sliders.values():
        slider.observe(redraw, "value")
    return WithTwin([*sliders.values(), view, words], twin)


@torch.no_grad()
def side_by_side(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, prompt: str, *, tokens: int = 40
) -> HTML:
    """What each model writes after the prompt (greedy), as an HTML table; the widget's static twin.

    Raises:
        ValueError: an empty prompt, or fewer than one token to generate.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty; write a sentence, for example 'Ada lives in Rome. Where does Ada live?'")
    if tokens < 1:
        raise ValueError(f"tokens = {tokens}: allowed are whole numbers ≥ 1")
    batch = tokenizer(prompt, return_tensors="pt")
    rows = []
    for name, model in models.items():
        ids = model.generate(
            batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        written = tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        side = 'style="text-align:left;padding:.2em .7em"'
        said = html.escape(written) if written.strip() else "<i>(nothing)</i>"
        rows.append(f'<tr><th scope="row" {side}>{html.escape(name)}</th><td {side}>{said}</td></tr>')
    caption = f'<caption style="text-align:left">After: <i>{html.escape(prompt)}</i></caption>'
    return HTML(f"<table>{caption}<tbody>{''.join(rows)}</tbody></table>")


def generation_widget(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, prompt: str, *, tokens: int = 40
) -> WithTwin | HTML:
    """A prompt, a length and a button; below, `side_by_side` of the same models, which is the twin.

    The first answer is there before any click. A mistake shows its message in place of the answer and
    the widget goes on working. Where nobody is there to click, it is the answer alone.
    """
    twin = side_by_side(models, tokenizer, prompt, tokens=tokens)
    if not somebody_is_there():
        return twin
    text = ipywidgets.Textarea(value=prompt, description="Prompt", layout={"width": "100%", "height": "6em"})
    length = ipywidgets.IntSlider(value=tokens, min=1, max=100, description="Tokens")
    button = ipywidgets.Button(description="Generate", button_style="primary")
    answer = ipywidgets.HTML(twin.data)

    def generate(_) -> None:
        try:
            answer.value = side_by_side(models, tokenizer, text.value, tokens=length.value).data
        except ValueError as error:
            answer.value = f'<p role="alert"><b>Nothing generated:</b> {html.escape(str(error))}</p>'

    button.on_click(generate)
    return WithTwin([text, ipywidgets.HBox([length, button]), answer], twin)
