"""Arguments that several commands share, and arguments made from a dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liger_mini import corpora
from liger_mini.attention import liger_layers
from liger_mini.convert import Settings
from liger_mini.recovery import Recipe

DATA = (
    "tinyworld; pydocs (Python's documentation); interrupted (its stories, cut in two by documentation); a .json, .jsonl or .parquet file or a hub id (columns instruction and output, or messages); a .txt, .md or "
    ".rst file or a folder of them"
)


def output_dir(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--output-dir", "--out", default=default, required=default is None, help="folder to write")


def output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", default=default, type=_file, help="JSON file to write")


def _file(name: str) -> str:
    if Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; give the name of a file in it")
    return name


def fields(parser: argparse.ArgumentParser, kind: type, *names: str) -> None:
    """A flag for each field of a dataclass (or those named), with the help in its docstring; not given, it is absent."""
    told = attributes(kind)
    for field in dataclasses.fields(kind):
        if names and field.name not in names:
            continue
        number = {"int": int, "float": float, "str": str, "bool": None}[str(field.type).split(" |")[0]]
        words = re.findall(r"Literal\['(\w+)'\]", str(field.type))
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if number is not None:
            pair = f"tuple[{number.__name__}, {number.__name__}]" in str(field.type)
            how = {"type": _or(words, number, pair), "metavar": "X,X" if pair else "X"}
        text = f"{told[field.name].rstrip('.')} (default: {field.default})".replace("%", "%%")
        parser.add_argument("--" + field.name.replace("_", "-"), default=SUPPRESS, help=text, **how)


def _or(words: list[str], number: type, pair: bool) -> Any:
    """What reads one of these words as it is, and everything else as a number; or two with a comma as a pair."""

    def read(text: str) -> Any:
        if pair and "," in text:
            return tuple(number(part) for part in text.split(","))
        return text if text in words else number(text)

    read.__name__ = number.__name__  # argparse names it where a text is neither
    return read


def given(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that were given as flags."""
    return {
        field.name: getattr(options, field.name) for field in dataclasses.fields(kind) if hasattr(options, field.name)
    }


def attributes(kind: type) -> dict[str, str]:
    """name -> its words in the section "Attributes" of a class's docstring."""
    section = re.split(r"^(?=\S)", (inspect.getdoc(kind) or "").partition("Attributes:\n")[2], flags=re.M)[0]
    entries = re.split(r"^    (?=\S)", section, flags=re.M)[1:]
    told = {}
    for entry in entries:
        names, _, words = entry.partition(": ")
        told |= dict.fromkeys(names.split(", "), " ".join(words.split()))
    return told


def settings(options: argparse.Namespace, model: PreTrainedModel | None = None) -> dict[str, Any]:
    """The arguments of `linearize` that were given.

    Raises:
        ValueError: `model` is linearized already, in another way.
    """
    asked = given(options, Settings)
    liger = getattr(getattr(model, "config", None), "liger", None)
    if liger is None:
        return asked
    if "backend" in asked:  # the form in which it runs can change at any time
        liger["backend"] = Settings.of({**liger, "backend": asked["backend"]}).backend
        for layer in liger_layers(model):
            layer.backend = liger["backend"]
    there = Settings.of(liger).explicit()
    other = {name: value for name, value in asked.items() if there[name] != value}
    if other:
        there = {name: there[name] for name in other}
        raise ValueError(f"{options.model} is linearized already, with {there}; {other} would need the original model")
    return asked


def sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample", help="with --temper teacher: a text, or another --data, on which to watch the teacher"
    )


def sample_rows(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[list[int]] | None:
    """The first 16 rows of `--sample`, None if it was not given."""
    if options.sample is None:
        return None
    some = rows(options.sample, tokenizer, options.length, Recipe(steps=2))  # of a stream as many as two batches
    return [some[i]["input_ids"] for i in range(min(16, len(some)))]


def rows(
    data: str, tokenizer: PreTrainedTokenizerBase, length: int, recipe: Recipe, stories: int | None = None
) -> Dataset:
    """What to recover on: tinyworld and pydocs, or the reader's own records or texts.

    Raises:
        ValueError: `stories` for other data.
    """
    if data == "tinyworld":
        return corpora.World(tokenizer, recipe.rows, length=length, stories=1 if stories is None else stories)
    if stories is not None:
        raise ValueError(f"--stories {stories} is for --data tinyworld, and the data is {data}")
    streams = {"pydocs": corpora.Documentation, "interrupted": corpora.Interrupted}
    if data in streams:
        return streams[data](tokenizer, recipe.rows, length=length)
    return corpora.rows(data, tokenizer, length=length)
