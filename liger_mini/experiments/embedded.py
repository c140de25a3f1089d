"""The models at hand: the embedded teacher and its recoveries, from the package's data, and SmolLM2 from the user's cache."""

from __future__ import annotations

import json

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from liger_mini.convert import linearize
from liger_mini.recovery import quiet_peft
from liger_mini.support.hub import load
from liger_mini.support.paths import data_dir
from liger_mini.support.smollm2 import smollm2_folder

WINDOW = 16  # with 4 layers the stacked windows reach 60 of the teacher's 256 tokens of context


def load_teacher() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded teacher and its tokenizer, from the package's data."""
    folder = data_dir() / "teacher"
    return load(folder).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_recovered(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A teacher as a recovery left it: linearized, with an adapter from ``data/recovered`` merged.

    Args:
        name: of the embedded teacher "recall" (the best recall that was found: a delta rule), "needles" (that one, trained
            on for long rows), "additive" (the best of those that add: LightNet) or "paper" (the paper's gate and recipe);
            "smollm2" is SmolLM2's, recovered on documentation, "smollm2-long" on ten times as much of it, and "smollm2-recall" on
            rows that ask. ``run.json`` beside it tells all.
    Raises:
        ValueError: another name. FileNotFoundError: SmolLM2 was not fetched.
    """
    folder = data_dir() / "recovered"
    names = sorted(path.name for path in folder.iterdir())
    if name not in names:
        raise ValueError(f"no recovered teacher {name!r}: there are {', '.join(map(repr, names))}")
    run = json.loads((folder / name / "run.json").read_text("utf-8"))
    if "after" in run:
        model, tokenizer = load_recovered(run["after"])
    else:
        model, tokenizer = load_smollm2() if run.get("teacher") == "smollm2" else load_teacher()
        linearize(model, **run["liger"])
    with quiet_peft():
        return PeftModel.from_pretrained(model, folder / name).merge_and_unload().eval(), tokenizer


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct, a pretrained language model with a chat template, and its tokenizer; from the user's cache.

    Raises:
        FileNotFoundError: it is not there; the message names the command that fetches it.
    """
    folder = smollm2_folder()
    return load(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
