"""the whole journey on a model of any size, written as JSON: measure, linearize, recover, measure, decode"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from liger_mini.commands import options as shared
from liger_mini.convert import Settings
from liger_mini.evaluation import HeldOut
from liger_mini.experiments import load_teacher
from liger_mini.experiments.pretraining import one_billion, pretrain
from liger_mini.experiments.walk import CONTEXTS, walk
from liger_mini.recovery import RECIPES
from liger_mini.support.hub import open_model, open_tokenizer


def describe(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a folder, GGUF file or hub id; the embedded teacher is data/teacher")
    source.add_argument("--minutes", type=float, help="first train a 1B-shaped teacher for so many minutes (GPU)")
    parser.add_argument("--data", default="tinyworld", help=shared.DATA)
    parser.add_argument("--length", type=int, default=512, help="tokens per row, in training and in evaluation")
    parser.add_argument("--recipe", choices=RECIPES, default="quick", help="of the recovery")
    parser.add_argument("--steps", type=int, default=None, help="of the recovery; None: the recipe's")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens after which both models decode"
    )
    shared.output_dir(parser, "runs/walk")
    shared.fields(parser, Settings)


def run(options: Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe, about = RECIPES[options.recipe], {"model": options.model}
    steps = recipe.steps if options.steps is None else options.steps
    recipe = dataclasses.replace(recipe, steps=steps, bf16=device == "cuda")
    teacher = open_model(options.model) if options.model else None
    tokenizer = open_tokenizer(options.model) if options.model else load_teacher()[1]
    settings = dataclasses.asdict(Settings(**shared.settings(options)))
    dataset = shared.rows(options.data, tokenizer, options.length, recipe)
    held_out = HeldOut(tokenizer, length=options.length)
    if teacher is None:
        teacher, folder = one_billion(tokenizer).to(device), Path(options.output_dir) / "teacher"
        about = pretrain(teacher, tokenizer, folder, minutes=options.minutes, length=options.length)
        teacher.to(torch.bfloat16 if device == "cuda" else torch.float32)  # as models of this size come
    how = {"recipe": recipe, "held_out": held_out, "contexts": options.contexts, "about": about}
    result = walk(teacher.to(device).eval(), tokenizer, dataset, options.output_dir, **how, **settings)
    for name in ("teacher", "linearized", "recovered"):
        report = result[name] if name == "teacher" else result[name]["both"]
        outside = report["recall_outside"]
        print(f"{name:11} loss {report['loss']:.3f}  recall outside {'-' if outside is None else f'{outside:.2f}'}")
