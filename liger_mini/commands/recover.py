"""LoRA recovery of a linearized model; the same command resumes after an interruption"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path

from accelerate import PartialState

from liger_mini.commands import options as shared
from liger_mini.commands.convert import model_card
from liger_mini.convert import LigerModel, Settings, linearize
from liger_mini.recovery import RECIPES, Recipe, recover
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.paths import write_atomically


def describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a folder, GGUF file or hub id; linearized first if it is not yet"
    )
    parser.add_argument("--data", required=True, help=shared.DATA)
    shared.output_dir(parser)
    parser.add_argument("--length", type=int, default=1024, help="tokens per row")
    stories = "with --data tinyworld: stories before each row of Python's documentation (default: 1)"
    parser.add_argument("--stories", type=int, default=None, metavar="X", help=stories)
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="what the flags below start from")
    shared.fields(parser, Recipe)
    shared.fields(parser, Settings)
    shared.sample(parser)


def run(options: Namespace) -> None:
    recipe = dataclasses.replace(RECIPES[options.recipe], **shared.given(options, Recipe))
    model = open_model(options.model)
    tokenizer, settings = open_tokenizer(options.model), shared.settings(options, model)
    if not isinstance(model, LigerModel):
        linearize(model, sample=shared.sample_rows(options, tokenizer), **settings)
    elif options.sample is not None:
        raise ValueError(f"{options.model} is linearized already, so there is no teacher to watch on a sample")
    dataset = shared.rows(options.data, tokenizer, options.length, recipe, options.stories)
    output_dir = Path(options.output_dir)
    result = recover(model, dataset, output_dir=output_dir, recipe=recipe)
    if not PartialState().is_main_process:  # torchrun: the others have the same
        return
    if not result.merged:
        print(f"{output_dir / 'adapter'}: saved; to merge it, run the same command in one process")
        return
    model.save_pretrained(output_dir / "model")
    tokenizer.save_pretrained(output_dir / "model")
    recovery = f"LoRA of rank {recipe.rank}, {result.tokens:,} tokens of {options.data}"
    write_atomically(output_dir / "model" / "README.md", model_card(model, options.model, recovery))
    last = f"; last loss {result.losses[-1][1]:.3f}" if result.losses else ""
    peak = "" if result.peak_bytes is None else f"; peak {result.peak_bytes / 1e9:.2f} GB"
    print(f"{output_dir / 'model'}: recovered, {result.tokens:,} tokens in {result.seconds:.0f} s{last}{peak}")
