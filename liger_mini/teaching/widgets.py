"""Widgets of the notebooks. Each is a thin shell over a function that also makes its static twin."""

from __future__ import annotations

import html
from collections.abc import Mapping

import ipywidgets
import torch
from IPython.display import HTML
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
) -> ipywidgets.VBox:
    """A prompt, a length and a button; below, `side_by_side` of the same models.

    The first answer is there before any click. A mistake shows its message in place of the answer and
    the widget goes on working.
    """
    text = ipywidgets.Textarea(value=prompt, description="Prompt", layout={"width": "100%", "height": "6em"})
    length = ipywidgets.IntSlider(value=tokens, min=1, max=100, description="Tokens")
    button = ipywidgets.Button(description="Generate", button_style="primary")
    answer = ipywidgets.HTML()

    def generate(_=None) -> None:
        try:
            answer.value = side_by_side(models, tokenizer, text.value, tokens=length.value).data
        except ValueError as error:
            answer.value = f'<p role="alert"><b>Nothing generated:</b> {html.escape(str(error))}</p>'

    button.on_click(generate)
    generate()
    return ipywidgets.VBox([text, ipywidgets.HBox([length, button]), answer])
