"""The three corpora of the course (chapter 08): tinyworld, pydocs and instructions.

* ``tinyworld``: endless, seeded short stories whose questions have answers at a known distance.
  They measure what a linearized model can still look up.
* ``pydocs``: the Python documentation that is already on the reader's disk. It measures ordinary
  language modelling, and nothing of it is copied into this repository.
* ``instructions``: Alpaca-style records from a local file or a hub id; what the paper trains on.

Every corpus becomes a ``datasets.Dataset`` of ``input_ids`` and ``labels`` (-100 = not scored).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import ArrowInvalid
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

Split = Literal["train", "heldout"]
IGNORE = -100  # the label that torch's cross entropy skips

# ---------------------------------------------------------------------------------------------
# tinyworld
# ---------------------------------------------------------------------------------------------
PEOPLE = (
    "Ada Amir Anna Ben Bela Carl Clara Dan Dora Eli Emma Finn Gina Hugo Ida Ivan Jack Jana Karl Kim "
    "Lena Leo Lucy Mara Max Mia Nina Noah Olga Omar Otto Paul Rita Rosa Sam Sara Tom Uma Vera Zoe"
).split()

# relation: (statement, update, question), each ending where the value goes, and the values
RELATIONS: dict[str, tuple[str, str, str, list[str]]] = {
    "home": (
        "{} lives in",
        "{} moved away and now lives in",
        "Where does {} live? {} lives in",
        "Athens Berlin Boston Cairo Delhi Dublin Geneva Kyoto Lima London Madrid Milan Moscow Oslo "
        "Paris Prague Rome Seoul Sydney Tokyo Vienna Warsaw York Zurich".split(),
    ),
    "pet": (
        "{} keeps a",
        "{} changed pets and now keeps a",
        "What does {} keep? {} keeps a",
        "bear bird camel cat cow crab deer dog duck fish fox frog goat hen horse lion mouse owl pig "
        "rabbit seal sheep snake wolf".split(),
    ),
    "job": (
        "{} works as a",
        "{} changed jobs and now works as a",
        "How does {} earn money? {} works as a",
        "baker barber builder clerk cook dancer doctor driver farmer fisher guard hunter judge lawyer "
        "miner nurse painter pilot poet sailor singer tailor teacher writer".split(),
    ),
}
FILLERS = (
    "It rained all day.|The sun came out again.|A train passed by.|Nobody said a word.|The wind was cold.|"
    "A bell rang in the tower.|The market was full of people.|Some children played outside.|"
    "The river was high that year.|Dinner was late again.|A long letter came in the mail.|"
    "The road to the hills was closed.|Everyone went to the fair.|The old clock stopped at noon.|"
    "Snow fell on the roofs.|There was music in the street.|The lamp on the table went out.|"
    "A boat came in from the sea.|The bread was still warm.|That night the moon was bright."
).split("|")


@dataclass(frozen=True)
class Question:
    """One answer in a story, as character offsets into ``Story.text``.

    ``answer`` is where the answer stands; ``source_end`` ends the last earlier place that tells it
    (a statement, or an earlier answer to the same question); ``candidates`` counts the values of
    this relation in force, so that 1/candidates is what guessing among them would score.
    """

    answer: tuple[int, int]
    source_end: int
    candidates: int


@dataclass(frozen=True)
class Story:
    text: str
    questions: tuple[Question, ...]


class _Teller:
    """Writes one story sentence by sentence and remembers who has what, and where that was said."""

    def __init__(self, rng: random.Random):
        self.rng, self.parts, self.length = rng, [], 0
        self.people = rng.sample(PEOPLE, rng.randint(2, 6))
        self.facts: dict[tuple[str, str], tuple[str, int]] = {}  # (person, relation) -> (value, where told)
        self.questions: list[Question] = []

    def say(self, sentence: str) -> None:
        text = (" " if self.parts else "") + sentence
        self.parts.append(text)
        self.length += len(text)

    def state(self, person: str, relation: str, *, update: bool = False) -> None:
        statement, change, _, values = RELATIONS[relation]
        in_force = {value for (_, r), (value, _) in self.facts.items() if r == relation}
        value = self.rng.choice([v for v in values if v not in in_force])
        self.say((change if update else statement).format(person) + f" {value}.")
        self.facts[person, relation] = (value, self.length - 1)

    def ask(self, person: str, relation: str) -> None:
        value, told = self.facts[person, relation]
        self.say(RELATIONS[relation][2].format(person, person) + f" {value}.")
        rivals = sum(other == relation for _, other in self.facts)
        self.questions.append(Question((self.length - 1 - len(value), self.length - 1), told, rivals))
        self.facts[person, relation] = (value, self.length - 1)

    def turn(self) -> None:
        """One sentence: a new fact, a filler, an update, or a question about any known fact.

        Questions are drawn with replacement, so some facts are asked twice and some never: were each
        asked exactly once, a reader could score by elimination instead of by recall.
        """
        untold = [(p, r) for p in self.people for r in RELATIONS if (p, r) not in self.facts]
        roll = self.rng.random()
        if not self.facts or (roll < 0.30 and untold):
            self.state(*self.rng.choice(untold))
        elif roll < 0.50:
            self.say(self.rng.choice(FILLERS))
        elif roll < 0.56:
            self.state(*self.rng.choice(list(self.facts)), update=True)
        else:
            recent = self.rng.random() < 0.3
            self.ask(*(list(self.facts)[-1] if recent else self.rng.choice(list(self.facts))))


def tinyworld(seed: int, split: Split = "train", *, sentences: int = 40) -> Iterator[Story]:
    """Endless deterministic stories; story i depends on (split, seed, i) alone.

    Args:
        seed: any integer; another seed is another stream.
        split: "train" or "heldout" name disjoint families of random streams.
        sentences: sentences a story; 40 are about 270 tokens of the embedded tokenizer.
    Raises:
        ValueError: an unknown split or fewer than one sentence.
    """
    _check_split(split)
    if sentences < 1:
        raise ValueError(f"sentences = {sentences}: a story needs at least 1")
    index = 0
    while True:
        yield story(seed, split, index, sentences=sentences)
        index += 1


def story(seed: int, split: Split, index: int, *, sentences: int = 40) -> Story:
    """Story number `index` of the stream ``tinyworld(seed, split)``."""
    teller = _Teller(random.Random(f"tinyworld/{split}/{seed}/{index}"))
    for _ in range(sentences):
        teller.turn()
    return Story("".join(teller.parts), tuple(teller.questions))


def encode_story(story: Story, tokenizer: PreTrainedTokenizerBase, length: int) -> dict[str, list]:
    """Tokenize one story and move its questions from characters to tokens.

    Returns:
        ``input_ids`` and ``labels`` (both [T], T ≤ length) and ``questions``: rows
        (first answer token, end of answer, distance, candidates), where distance is the number of
        tokens from the last token that told the answer to the first token of the answer. Questions
        that the cut at `length` removes are dropped.
    """
    encoding = tokenizer(story.text, add_special_tokens=False)
    ids = encoding["input_ids"][:length]
    rows = []
    for question in story.questions:
        first = encoding.char_to_token(question.answer[0])
        end = encoding.char_to_token(question.answer[1] - 1) + 1  # the full stop may be in the answer's last token
        told = encoding.char_to_token(question.source_end - 1)
        if end <= len(ids):
            rows.append((first, end, first - told, question.candidates))
    return {"input_ids": ids, "labels": list(ids), "questions": rows}


# ---------------------------------------------------------------------------------------------
# pydocs
# ---------------------------------------------------------------------------------------------
_NOT_READ = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"}


def _module_text(path: Path) -> str:
    """The docstring of a module, then ``def``/``class`` lines with theirs, in source order."""
    source = path.read_text("utf-8", errors="replace")
    lines, parts = source.splitlines(), []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node)
            if doc:
                start = getattr(node, "lineno", 0)
                head = "\n".join(lines[start - 1 : node.body[0].lineno - 1]) + "\n" if start else ""
                parts.append((start, head.strip() + "\n" + doc if head else doc))
    return "\n\n".join(text for _, text in sorted(parts))


@functools.cache
def _pydocs_documents() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "this Python has no pydoc_data.topics (the language reference); pydocs reads it. "
            "Install the full standard library (Debian: apt install libpython3-stdlib python3-doc-data)"
        ) from error
    documents = {f"topic:{name}": text for name, text in topics.items()}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _NOT_READ.intersection(relative.parts):
            documents[f"module:{relative.as_posix()}"] = _module_text(path)
    return {name: text for name, text in sorted(documents.items()) if len(text) >= 200}


def pydocs(split: Split = "train") -> list[str]:
    """The documents of the running Python's standard library, in a fixed order.

    A document is one language-reference topic or one module's docstrings with their signatures. It is
    held out if the first byte of the SHA-256 of its name is below 26 (one in ten), so the split
    does not depend on the Python version; the texts do, a little.
    """
    _check_split(split)
    heldout = split == "heldout"
    return [
        text
        for name, text in _pydocs_documents().items()
        if (hashlib.sha256(name.encode()).digest()[0] < 26) == heldout
    ]


def pydocs_tokens(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All pydocs of a split as one stream of token ids, an end-of-text token after each document."""
    stream: list[int] = []
    for ids in tokenizer(pydocs(split), add_special_tokens=False)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    return stream


# ---------------------------------------------------------------------------------------------
# instructions
# ---------------------------------------------------------------------------------------------
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


def instructions(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024) -> Dataset:
    """Alpaca-style records, prompted as Alpaca prompts them, with labels on the answer alone.

    Args:
        source: a .json, .jsonl or .parquet file, or a hub id such as ``yahma/alpaca-cleaned``.
            Needs the columns ``instruction`` and ``output``; ``input`` is optional.
        length: tokens kept of each record. Records whose prompt alone fills it are dropped.
    Raises:
        FileNotFoundError: a path that does not exist, or a name the hub does not know. ConnectionError: no hub in reach.
        ValueError: a missing column, or no record left.
    """
    records = _load_records(source)
    missing = {"instruction", "output"} - set(records.column_names)
    if missing:
        raise ValueError(
            f"{source} lacks the column(s) {sorted(missing)}; it has {records.column_names}. "
            "Alpaca-style data needs 'instruction' and 'output' ('input' is optional)"
        )

    def encode(record: dict) -> dict[str, list[int]]:
        template = PROMPT_WITH_INPUT if record.get("input") else PROMPT
        prompt = tokenizer(template.format(**record), add_special_tokens=False)["input_ids"]
        if not isinstance(record["output"], str) or not isinstance(record["instruction"], str):
            raise ValueError(f"{source}: instruction and output must be text; found {str(record)[:200]}")
        answer = tokenizer(record["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids, labels = prompt + answer, [IGNORE] * len(prompt) + answer
        return {"input_ids": ids[:length], "labels": labels[:length]}

    encoded = records.map(encode, remove_columns=records.column_names, desc="tokenizing instructions")
    kept = encoded.filter(lambda row: any(label != IGNORE for label in row["labels"]), desc="dropping cut records")
    if not len(kept):
        raise ValueError(f"{source}: none of its {len(records)} records has an answer within {length} tokens")
    return kept


def _load_records(source: str | Path) -> Dataset:
    path = Path(source)
    readers = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if path.suffix in readers or path.is_absolute() or path.exists():
        if not path.is_file():
            raise FileNotFoundError(f"no instruction file at {path}; give a .json, .jsonl or .parquet file or a hub id")
        if path.suffix not in readers:
            raise ValueError(f"{path}: allowed are .json, .jsonl and .parquet files")
        try:
            return load_dataset(readers[path.suffix], data_files=str(path), split="train")
        except (DatasetGenerationError, StopIteration, ArrowInvalid) as error:
            reason = str(error.__cause__ or error) or "it is empty"
            raise ValueError(f"{path} cannot be read as {path.suffix} records: {reason}") from error
    try:
        return load_dataset(str(source), split="train")
    except (ConnectionError, DatasetNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(
            f"{source} is no file here, and the hub did not give it ({error}); give a .json, .jsonl or .parquet file "
            "with the columns instruction and output instead"
        ) from error


# ---------------------------------------------------------------------------------------------
# rows and batches
# ---------------------------------------------------------------------------------------------
class World(torch.utils.data.Dataset):
    """What the embedded teacher is recovered on: stories and pydocs in turn, row i from (seed, i) alone.

    Args:
        rows: how many; they are made when asked for. length: tokens a row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int, *, length: int = 256, seed: int = 0):
        self.tokenizer, self.rows, self.length, self.seed = tokenizer, rows, length, seed
        self.docs = pydocs_tokens("train", tokenizer)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        if not 0 <= i < self.rows:
            raise IndexError(f"row {i} of {self.rows}")
        if i % 2:
            return document_row(self.docs, random.Random(f"world/{self.seed}/{i}"), self.length)
        sentences = max(40, 10 * self.length // 64)  # enough to fill the row
        row = encode_story(story(self.seed, "train", i, sentences=sentences), self.tokenizer, self.length)
        return {"input_ids": row["input_ids"], "labels": row["labels"]}


def document_row(stream: list[int], rng: random.Random, length: int) -> dict[str, list[int]]:
    """`length` tokens from a random place of a token stream, all scored."""
    start = rng.randrange(len(stream) - length)
    ids = stream[start : start + length]
    return {"input_ids": ids, "labels": list(ids)}


@dataclass(frozen=True)
class Collator:
    """Rows of unequal length -> one right-padded batch: input_ids, attention_mask and labels, each [B, T]."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        def pad(values: list[list[int]], filler: int) -> Tensor:
            return pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=filler)

        return {
            "input_ids": pad([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": pad([row["labels"] for row in rows], IGNORE),
        }


def _check_split(split: str) -> None:
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}: allowed are 'train' and 'heldout'")
