"""linearize a Hugging Face model and save it as a folder that AutoModel loads"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

from transformers import PreTrainedModel

from liger_mini.commands import options as shared
from liger_mini.convert import Settings, linearize
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.paths import write_atomically
from liger_mini.support.version import __version__


def describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a folder, a GGUF file, or a hub id such as meta-llama/Llama-3.2-1B"
    )
    shared.output_dir(parser)
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="auto keeps the checkpoint's")
    parser.add_argument("--length", type=int, default=1024, help="tokens per row of the sample")
    shared.fields(parser, Settings)
    shared.sample(parser)


def run(options: Namespace) -> None:
    sample = None if options.sample is None else shared.sample_rows(options, open_tokenizer(options.model))
    how = {"dtype": options.dtype, "sample": sample}
    model = convert_folder(options.model, options.output_dir, **how, **shared.settings(options))
    kind, parameters = type(model).__name__, f"{model.num_parameters():,}"
    print(f"{options.output_dir}: {kind}, {parameters} parameters; {added_parameters(model)}")


def convert_folder(source: str | Path, output_dir: str | Path, *, dtype: str = "auto", **settings) -> PreTrainedModel:
    """Linearize a model from disk or the hub and save it with its tokenizer and a model card.

    The weights are read shard by shard into one copy, swapped in place and written shard by shard.

    Args:
        dtype: "auto" keeps the checkpoint's.
        settings: the arguments of `linearize`.
    Raises:
        FileExistsError: `output_dir` is not empty. And what `open_model` and `linearize` raise.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty; convert into a new folder")
    model = linearize(open_model(source, dtype=dtype), **settings)
    model.save_pretrained(output_dir)
    try:
        open_tokenizer(source).save_pretrained(output_dir)
    except (FileNotFoundError, ValueError) as error:
        warnings.warn(f"{error}; {output_dir} has no tokenizer", stacklevel=2)
    write_atomically(output_dir / "README.md", model_card(model, str(source)))
    return model


def added_parameters(model: PreTrainedModel) -> str:
    """A sentence on how many parameters a linearized model has beyond the model it was made from, counted."""
    before = model.config.liger.get("parameters")
    if before is None:
        return "how many parameters it had before was not recorded"  # by an older version
    added = model.num_parameters() - before
    return f"{added:,} parameters were added" if added else "no parameter was added"


def half_lives(temper: float | tuple[tuple[float, ...], ...] | None) -> str:
    """In words."""
    if isinstance(temper, tuple):
        numbers = [number for layer in temper for number in layer]
        return f"{min(numbers):.3g} to {max(numbers):.3g} tokens, one per key head"
    return "no temper" if temper is None else f"{temper:g} tokens"


def model_card(
    model: PreTrainedModel, source: str, recovery: str = "none yet: expect a high loss until LoRA recovery"
) -> str:
    """What was done to a model, for those who find it in a folder."""
    liger, config = model.config.liger, model.config
    settings = Settings.of(liger)
    temper, (a, b) = settings.explicit()["temper"], settings.branches
    always = f", and always the first {settings.sinks} of the text" if settings.sinks else ""
    kept = config.layer_types.count("full_attention")
    return f"""---
library_name: transformers
tags: [liger_mini, linear-attention]
---
# {Path(source).name}, linearized

Made from `{source}` with [liger_mini](https://arxiv.org/abs/2503.01496) {__version__}: softmax attention was replaced by Liger
Attention, a gated recurrence mixed with a sliding window of softmax attention. Counted: {added_parameters(model)}.

| | |
|---|---|
| structure | {liger["structure"]} |
| half-life of a neutral gate | {half_lives(temper)} |
| window | {liger["window"]} tokens{always} |
| mix | {a:g} recurrence + {b:g} window |
| blocks kept as softmax attention | {kept} of {config.num_hidden_layers} |
| parameters | {model.num_parameters():,} |
| recovery | {recovery} |

```python
import liger_mini  # registers the model type
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder")
```

The licence of `{source}` goes on to apply.
"""
