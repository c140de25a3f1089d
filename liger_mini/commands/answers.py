"""what SmolLM2, or another chat model, answers to plain requests: text to recover it on in its own voice; resumes"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from liger_mini.corpora.answers import answers_file, own_answers
from liger_mini.support.hub import open_model, open_tokenizer
from liger_mini.support.smollm2 import smollm2_folder


def describe(parser: ArgumentParser) -> None:
    parser.add_argument("--model", help="a folder, GGUF file or hub id of a chat model; by default SmolLM2")
    parser.add_argument("--tokens", type=int, default=100_000, help="of answers; all 480 requests, if those make fewer")
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests, and of what is drawn")
    parser.add_argument(
        "--bf16", action="store_true", help="the model in bfloat16, where the processor has units for it"
    )
    parser.add_argument(
        "--out", type=Path, help="the file, for `recover --data`; by default beside SmolLM2, for `real --plan answers`"
    )


def run(options: Namespace) -> None:
    source, path = options.model or smollm2_folder(), options.out or answers_file()
    model, tokenizer = (
        open_model(source, dtype=torch.bfloat16 if options.bf16 else torch.float32).eval(),
        open_tokenizer(source),
    )
    written = own_answers(model, tokenizer, path, tokens=options.tokens, seed=options.seed)
    print(f"{path}: {written:,} tokens of answers")
