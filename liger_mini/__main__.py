"""`python -m liger_mini COMMAND`: thin commands over the functions of the same names."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="liger_mini", description="Linearize a Transformer, and win its quality back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (describe, run) in COMMANDS.items():
        command = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        describe(command)
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command][1](options) or 0
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        FloatingPointError,
        MemoryError,
    ) as error:  # what the functions say about bad input
        print(f"liger_mini {options.command}: {error}", file=sys.stderr)
        return 2


def _output_dir(default: str | None = None):
    def describe(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output-dir", "--out", default=default, required=default is None, help="folder to write")

    return describe


def _output(default: str):
    def describe(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output", default=default, type=_file, help="JSON file to write")

    return describe


def _file(name: str) -> str:
    if Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; give the name of a file in it")
    return name


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


DTYPES = ("auto", "float32", "bfloat16", "float16")
DATA = (
    "tinyworld; a .json, .jsonl or .parquet file or a hub id (columns instruction and output, or messages); a .txt, .md or "
    ".rst file or a folder of them"
)
SETTINGS = ("structure", "window", "mix", "temper", "softmax_every")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments of `linearize`; one that is not given is not passed on."""
    for flag, kind, text in (
        ("--structure", str, "a name in liger_mini.structures (default: gla)"),
        ("--window", int, "keys the softmax branch sees (default: 64)"),
        ("--mix", float, "weight of the recurrence; the window has the rest (default: 0.5)"),
        ("--temper", float, "half-life of a neutral gate in tokens (default: the structure's)"),
        ("--softmax-every", int, "keep every n-th block as softmax attention (default: none)"),
    ):
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text)


def _settings(options: argparse.Namespace, model=None) -> dict:
    """The settings given; all of them must be those of a `model` that is linearized already."""
    from liger_mini.structures import get_structure

    given = {name: getattr(options, name) for name in SETTINGS if hasattr(options, name)}
    there = getattr(getattr(model, "config", None), "liger", None)
    if there is None:
        return given
    there = {**there, "temper": get_structure(there["structure"], there["temper"]).temper}  # its default, where None
    other = {name: value for name, value in given.items() if there[name] != value}
    if other:
        there = {name: there[name] for name in other}
        raise ValueError(f"{options.model} is linearized already, with {there}; {other} would need the original model")
    return given


def demo(options: argparse.Namespace) -> None:
    """linearize and recover the embedded teacher; writes a report"""
    from liger_mini.demo import run

    run(options.output_dir)


def _describe_teacher(parser: argparse.ArgumentParser) -> None:
    _output_dir("runs/teacher")(parser)
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")


def teacher(options: argparse.Namespace) -> None:
    """train the embedded teacher from a seed (about 70 minutes on 2 cores); resumes"""
    from liger_mini.teacher import train_teacher

    train_teacher(options.output_dir, seed=options.seed)


def _describe_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder, or a hub id such as meta-llama/Llama-3.2-1B")
    _output_dir()(parser)
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="auto keeps the checkpoint's")
    _add_settings(parser)


def convert(options: argparse.Namespace) -> None:
    """linearize a Hugging Face model and save it as a folder that AutoModel loads"""
    from liger_mini.convert import added_parameters
    from liger_mini.convert import convert as run

    model = run(options.model, options.output_dir, dtype=options.dtype, **_settings(options))
    print(
        f"{options.output_dir}: {type(model).__name__}, {model.num_parameters():,} parameters; {added_parameters(model)}"
    )


def _describe_recover(parser: argparse.ArgumentParser) -> None:
    from liger_mini.recover import RECIPES, Recipe

    parser.add_argument("--model", required=True, help="a folder or hub id; linearized first if it is not yet")
    parser.add_argument("--data", required=True, help=DATA)
    _output_dir()(parser)
    parser.add_argument("--length", type=int, default=1024, help="tokens a row")
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="what the flags below start from")
    for field in dataclasses.fields(Recipe):
        kind = {"int": int, "float": float, "bool": None}[str(field.type).split(" |")[0]]
        how = {"action": argparse.BooleanOptionalAction} if kind is None else {"type": kind, "metavar": str(field.type)}
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=f"Recipe.{field.name}", **how)
    _add_settings(parser)


def recover(options: argparse.Namespace) -> None:
    """LoRA recovery of a linearized model; the same command resumes after an interruption"""
    from accelerate import PartialState

    from liger_mini.convert import LigerModel, linearize, model_card, open_model, open_tokenizer
    from liger_mini.paths import write_atomically
    from liger_mini.recover import RECIPES, Recipe
    from liger_mini.recover import recover as run

    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe) if hasattr(options, f.name)}
    recipe = dataclasses.replace(RECIPES[options.recipe], **given)
    model = open_model(options.model)
    tokenizer, settings = open_tokenizer(options.model), _settings(options, model)
    if not isinstance(model, LigerModel):
        linearize(model, **settings)
    dataset = _rows(options.data, tokenizer, options.length, recipe)
    output_dir = Path(options.output_dir)
    result = run(model, dataset, output_dir=output_dir, recipe=recipe)
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


def _describe_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder or hub id, linearized or not")
    parser.add_argument(
        "--window", type=int, default=argparse.SUPPRESS, help="W for sorting questions, for a model that has none"
    )
    parser.add_argument("--text", default=None, help="a text file: its loss and perplexity as well")
    parser.add_argument("--needle", type=int, nargs="*", default=None, help="context lengths; none given: 1 K … 32 K")
    _output("runs/evaluate.json")(parser)


def evaluate(options: argparse.Namespace) -> None:
    """held-out loss, recall by distance, branch ablation; a text's perplexity and a needle test on request"""
    from liger_mini.convert import LigerModel, open_model, open_tokenizer
    from liger_mini.corpus import read_text
    from liger_mini.evaluate import HeldOut, branch_ablation, text_loss
    from liger_mini.evaluate import evaluate as run
    from liger_mini.needle import LENGTHS
    from liger_mini.needle import needle as find
    from liger_mini.paths import write_atomically
    from liger_mini.provenance import provenance

    text = read_text(options.text) if options.text else None
    model = open_model(options.model).eval()
    tokenizer, settings = open_tokenizer(options.model), _settings(options, model)
    result = {"model": options.model}
    if text is not None:  # the quick parts first: they may find a mistake
        loss, tokens = text_loss(model, text, tokenizer)
        result["text"] = {"file": options.text, "loss": loss, "tokens": tokens}
        print(f"{options.text}: loss {loss:.3f} nats a token over {tokens:,} tokens")
    if options.needle is not None:
        result["needle"] = find(model, tokenizer, lengths=options.needle or LENGTHS)
        for row in result["needle"]:
            print(f"needle: {row['length']:6} tokens, depth {row['depth']:.1f}: found {row['found']:.2f}")
    held_out, linearized = HeldOut(tokenizer), isinstance(model, LigerModel)
    reports = branch_ablation(model, held_out) if linearized else {"both": run(model, held_out, **settings)}
    result["branches"] = {name: report.to_dict() for name, report in reports.items()}
    for name, report in reports.items():
        recalls = ", ".join(f"{where} {recall.recall:.2f}" for where, recall in report.recall.items())
        print(f"{name:16} loss {report.loss:.3f}  perplexity {report.perplexity:.1f}  recall {recalls}")
    write_atomically(Path(options.output), json.dumps({**result, "provenance": provenance()}, indent=1))


def _describe_ablation(parser: argparse.ArgumentParser) -> None:
    from liger_mini.ablation import TABLES

    _output_dir("runs/ablation")(parser)
    parser.add_argument("--table", choices=TABLES, default="paper", help="paper: Table 6; memory: recall, chapter 09")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each variant once a seed")
    parser.add_argument("--variants", nargs="+", default=None, help="some of them; all by default")
    for name in ("steps", "transfer_steps"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=argparse.SUPPRESS, help="of each recovery, if not the table's")


def ablation(options: argparse.Namespace) -> None:
    """the paper's Table 6, or every structure's recall, on the embedded teacher, over seeds; resumes"""
    from liger_mini.ablation import run

    changes = {name: getattr(options, name) for name in ("steps", "transfer_steps") if hasattr(options, name)}
    how = {"table": options.table, "seeds": options.seeds, "variants": options.variants}
    run(options.output_dir, **how, **changes)


def _describe_harness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder or hub id, linearized or not")
    parser.add_argument(
        "--tasks", default="tinyworld", help="names the harness knows, with commas; tinyworld is offline"
    )
    parser.add_argument(
        "--num-fewshot", type=int, default=None, help="examples before each question (the paper: MMLU 5)"
    )
    parser.add_argument(
        "--batch-size", type=_number_or_word, default=8, help="questions at a time; auto: as many as memory holds"
    )
    parser.add_argument("--limit", type=int, default=None, help="questions a task, for a quick look")
    _output("runs/harness.json")(parser)


def harness(options: argparse.Namespace) -> None:
    """lm-evaluation-harness on a model, linearized or not; writes JSON"""
    from liger_mini.convert import open_model, open_tokenizer
    from liger_mini.harness import harness as run
    from liger_mini.paths import write_atomically
    from liger_mini.provenance import provenance

    model = open_model(options.model).eval()
    tokenizer = open_tokenizer(options.model)
    how = {"num_fewshot": options.num_fewshot, "batch_size": options.batch_size, "limit": options.limit}
    scores = run(model, tokenizer, [task.strip() for task in options.tasks.split(",")], **how)
    for task, numbers in scores.items():
        print(f"{task}: " + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    result = {"model": options.model, **how, "scores": scores, "provenance": provenance()}
    write_atomically(Path(options.output), json.dumps(result, indent=1))


def _describe_walk(parser: argparse.ArgumentParser) -> None:
    from liger_mini.recover import RECIPES

    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a folder or hub id; the embedded teacher is data/teacher")
    source.add_argument("--minutes", type=float, help="first train a 1B-shaped teacher for so many minutes (GPU)")
    parser.add_argument("--data", default="tinyworld", help=DATA)
    parser.add_argument("--length", type=int, default=512, help="tokens a row, in training and in evaluation")
    parser.add_argument("--recipe", choices=RECIPES, default="quick", help="of the recovery")
    parser.add_argument("--steps", type=int, default=None, help="of the recovery; None: the recipe's")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    _output_dir("runs/walk")(parser)
    _add_settings(parser)


def walk(options: argparse.Namespace) -> None:
    """the whole journey on a model of any size, written as JSON: measure, linearize, recover, measure, decode"""
    import torch

    from liger_mini.convert import check_settings, open_model, open_tokenizer
    from liger_mini.demo import load_teacher
    from liger_mini.evaluate import HeldOut
    from liger_mini.recover import RECIPES
    from liger_mini.walk import one_billion, pretrain
    from liger_mini.walk import walk as run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe, about = RECIPES[options.recipe], {"model": options.model}
    steps = recipe.steps if options.steps is None else options.steps
    recipe = dataclasses.replace(recipe, steps=steps, bf16=device == "cuda")
    teacher = open_model(options.model) if options.model else None
    tokenizer = open_tokenizer(options.model) if options.model else load_teacher()[1]
    settings, dataset = _settings(options), _rows(options.data, tokenizer, options.length, recipe)
    check_settings(**settings)
    held_out = HeldOut(tokenizer, length=options.length)
    if teacher is None:
        teacher, folder = one_billion(tokenizer).to(device), Path(options.output_dir) / "teacher"
        about = pretrain(teacher, tokenizer, folder, minutes=options.minutes, length=options.length)
        teacher.to(torch.bfloat16 if device == "cuda" else torch.float32)  # as models of this size come
    how = {"recipe": recipe, "held_out": held_out, "contexts": options.contexts, "about": about}
    result = run(teacher.to(device).eval(), tokenizer, dataset, options.output_dir, **how, **settings)
    for name in ("teacher", "linearized", "recovered"):
        report = result[name] if name == "teacher" else result[name]["both"]
        outside = report["recall_outside"]
        print(f"{name:11} loss {report['loss']:.3f}  recall outside {'-' if outside is None else f'{outside:.2f}'}")


def _rows(data: str, tokenizer, length: int, recipe):
    """What to recover on: tinyworld and pydocs, or the reader's own records or texts."""
    from liger_mini import corpus

    if data != "tinyworld":
        return corpus.rows(data, tokenizer, length=length)
    if recipe.steps is None:
        raise ValueError("tinyworld has no end: give --steps")
    return corpus.World(tokenizer, max(recipe.steps, recipe.transfer_steps) * recipe.batch_size, length=length)


def needle(options: argparse.Namespace) -> None:
    """the needle test at 1 K … 32 K on the embedded teacher and its recoveries; writes JSON"""
    from liger_mini.needle import run

    run(options.output)


def equivalence(options: argparse.Namespace) -> int:
    """every structure in every form against float64; writes JSON; 1 if a cell is over its tolerance"""
    import torch

    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        # triton reads it when it is first imported, which has happened by now: once more, with it
        command = [sys.executable, "-m", "liger_mini", "equivalence", "--output", options.output]
        return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode
    from liger_mini.equivalence import run

    return 0 if all(row["ok"] for row in run(options.output)["rows"]) else 1


def benchmark(options: argparse.Namespace) -> None:
    """time and memory, as ratios within this run; writes JSON"""
    from liger_mini.benchmark import run

    run(options.output)


COMMANDS = {
    "demo": (_output_dir("runs/demo"), demo),
    "teacher": (_describe_teacher, teacher),
    "convert": (_describe_convert, convert),
    "recover": (_describe_recover, recover),
    "evaluate": (_describe_evaluate, evaluate),
    "ablation": (_describe_ablation, ablation),
    "harness": (_describe_harness, harness),
    "walk": (_describe_walk, walk),
    "needle": (_output("runs/needle.json"), needle),
    "equivalence": (_output("runs/equivalence.json"), equivalence),
    "benchmark": (_output("runs/benchmark.json"), benchmark),
}


if __name__ == "__main__":
    sys.exit(main())
