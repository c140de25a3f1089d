"""lm-evaluation-harness on a model, linearized or not; writes JSON"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from liger_mini.commands import options as shared
from liger_mini.evaluation import harness
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance


def describe(parser: ArgumentParser) -> None:
    batches = "questions at a time; auto: as many as memory holds"
    fewshot = "examples before each question (the paper: MMLU 5)"
    parser.add_argument("--model", required=True, help="a folder, GGUF file or hub id, linearized or not")
    parser.add_argument(
        "--tasks", default="tinyworld", help="names the harness knows, with commas; tinyworld is offline"
    )
    parser.add_argument("--num-fewshot", type=int, default=None, help=fewshot)
    parser.add_argument("--batch-size", type=_number_or_word, default=8, help=batches)
    parser.add_argument("--limit", type=int, default=None, help="questions per task, for a quick look")
    shared.output(parser, "runs/harness.json")


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def run(options: Namespace) -> None:
    model = open_model(options.model).eval()
    tokenizer = open_tokenizer(options.model)
    how = {"num_fewshot": options.num_fewshot, "batch_size": options.batch_size, "limit": options.limit}
    scores = harness(model, tokenizer, [task.strip() for task in options.tasks.split(",")], **how)
    for task, numbers in scores.items():
        print(f"{task}: " + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    result = {"model": options.model, **how, "scores": scores, "provenance": provenance()}
    write_atomically(Path(options.output), json.dumps(result, indent=1))
