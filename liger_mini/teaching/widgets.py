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

from liger_mini.teaching.figures.theme import alt_text, as_html, with_slider


class WithTwin(ipywidgets.VBox):
    """A widget that also carries HTML for pages without a kernel; Jupyter shows the one, the book the other."""

    def __init__(self, children: Sequence[ipywidgets.Widget], twin: str):
        super().__init__(children)
        self.twin = twin

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(**kwargs), "text/html": self.twin}


def explore(draw: Callable[..., go.Figure], **controls: Sequence[Any]) -> WithTwin:
    """A figure with a slider for each argument of `draw`; the twin is one slider over all combinations.

    Every setting is drawn once for the twin, so one that `draw` refuses shows at once, not under a reader's hand.

    Args:
        draw: keyword arguments -> a figure with alt text; every figure has the same traces.
        controls: argument -> the values its slider offers, the first one shown first.
    """
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
    return WithTwin([*sliders.values(), view, words], as_html(with_slider(draw, **controls)))


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
        rows.append(
            f'<tr><th scope="row">{html.escape(name)}</th><td style="text-align:left">{html.escape(written)}</td></tr>'
        )
    caption = f'<caption style="text-align:left">After: <i>{html.escape(prompt)}</i></caption>'
    return HTML(f"<table>{caption}<tbody>{''.join(rows)}</tbody></table>")


def generation_widget(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, prompt: str, *, tokens: int = 40
) -> WithTwin:
    """A prompt, a length and a button; below, `side_by_side` of the same models, which is the twin.

    The first answer is there before any click. A mistake shows its message in place of the answer and
    the widget goes on working.
    """
    text = ipywidgets.Textarea(value=prompt, description="Prompt", layout={"width": "100%", "height": "6em"})
    length = ipywidgets.IntSlider(value=tokens, min=1, max=100, description="Tokens")
    button = ipywidgets.Button(description="Generate", button_style="primary")
    answer = ipywidgets.HTML(side_by_side(models, tokenizer, prompt, tokens=tokens).data)

    def generate(_) -> None:
        try:
            answer.value = side_by_side(models, tokenizer, text.value, tokens=length.value).data
        except ValueError as error:
            answer.value = f'<p role="alert"><b>Nothing generated:</b> {html.escape(str(error))}</p>'

    button.on_click(generate)
    return WithTwin([text, ipywidgets.HBox([length, button]), answer], answer.value)
