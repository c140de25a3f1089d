"""held-out loss, recall by distance, branch ablation; a text's perplexity and a needle test on request"""

from __future__ import annotations

import json
import math
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path

import torch

from liger_mini.commands import options as shared
from liger_mini.convert import LigerModel
from liger_mini.corpora import read_text
from liger_mini.evaluation import HeldOut, branch_ablation, evaluate, needle, text_loss
from liger_mini.evaluation.haystacks import LENGTHS
from liger_mini.evaluation.measure import warn_if_nothing_is_outside
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.paths import write_atomically
from liger_mini.support.provenance import provenance


def describe(parser: ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder, GGUF file or hub id, linearized or not")
    parser.add_argument(
        "--window", type=int, default=SUPPRESS, help="W for sorting questions, for a model that has none"
    )
    parser.add_argument(
        "--sinks", type=int, default=SUPPRESS, help="the same for a window that goes with sinks (default: 0)"
    )
    parser.add_argument("--text", default=None, help="a text file: its loss and perplexity as well")
    parser.add_argument("--needle", type=int, nargs="*", default=None, help="context lengths; none given: 1 K … 32 K")
    length = "tokens per row of the held-out stories and documents; more than the windows reach, to see the recurrence"
    parser.add_argument("--length", type=int, default=256, help=length)
    shared.output(parser, "runs/evaluate.json")


def run(options: Namespace) -> None:
    text = read_text(options.text) if options.text else None
    model = open_model(options.model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    tokenizer, settings = open_tokenizer(options.model), shared.settings(options, model)
    result = {"model": options.model}
    if text is not None:  # the quick parts first: they may find a mistake
        loss, tokens = text_loss(model, text, tokenizer)
        result["text"] = {"file": options.text, "loss": loss, "perplexity": math.exp(loss), "tokens": tokens}
        print(
            f"{options.text}: loss {loss:.3f} nats per token, perplexity {math.exp(loss):.1f}, over {tokens:,} tokens"
        )
    if options.needle is not None:
        result["needle"] = needle(model, tokenizer, lengths=options.needle or LENGTHS)
        for row in result["needle"]:
            print(f"needle: {row['length']:6} tokens, depth {row['depth']:.1f}: found {row['found']:.2f}")
    held_out, linearized = HeldOut(tokenizer, length=options.length), isinstance(model, LigerModel)
    reports = branch_ablation(model, held_out) if linearized else {"both": evaluate(model, held_out, **settings)}
    warn_if_nothing_is_outside(reports["both"], options.length)
    result["branches"] = {name: report.to_dict() for name, report in reports.items()}
    for name, report in reports.items():
        recalls = ", ".join(f"{where} {recall.recall:.2f}" for where, recall in report.recall.items())
        print(f"{name:16} loss {report.loss:.3f}  perplexity {report.perplexity:.1f}  recall {recalls}")
    write_atomically(Path(options.output), json.dumps({**result, "provenance": provenance()}, indent=1))
