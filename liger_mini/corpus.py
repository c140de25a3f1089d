"""What one feeds a model (chapter 08): tinyworld, pydocs, and the reader's own instructions, chats and texts.

* ``tinyworld``: endless, seeded short stories whose questions have answers at a known distance.
  They measure what a linearized model can still look up.
* ``pydocs``: the Python documentation that is already on the reader's disk. It measures ordinary
  language modelling, and nothing of it is copied into this repository.
* ``instructions``: Alpaca-style records (what the paper trains on) or chats, from a local file or a hub id.
* ``texts``: a plain text file, or a folder of them.

Every corpus becomes rows of ``input_ids`` and ``labels`` (-100 = not scored). Two rules hold for all of them:

* A text is tokenized whole, and what is looked for in it is found by character offsets. Pieces tokenized apart and
  joined are other tokens than the text's: a Llama-2 tokenizer puts a space before each.
* A row that a model reads on its own begins with what its tokenizer puts before a text (`begin`).
"""

from __future__ import annotations

import ast
import bisect
import codecs
import functools
import hashlib
import json
import random
import re
import sysconfig
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

Split = Literal["train", "heldout"]
IGNORE = -100  # the label that torch's cross entropy skips


# ---------------------------------------------------------------------------------------------
# from text to tokens
# ---------------------------------------------------------------------------------------------
def begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: [bos] for Llama and Mistral, [] for Qwen and the embedded teacher.

    Every row that a model reads on its own begins with it, as everything does that `generate` and pipelines are given:

    * a whole text (story, instruction, needle): as the tokenizer itself does it;
    * a row cut out of a longer text: in front of the cut, and counted in the row's length;
    * documents packed into one stream: [begin] document [eos] [begin] document [eos] …, so that a row cut out of the
      stream may hold it in its middle as well. Documents in a row see each other, as is usual in pretraining.

    It is given and never predicted, so it is not scored anywhere.

    Raises:
        ValueError: a tokenizer that writes a text otherwise when special tokens are around it.
    """
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    for i in range(len(whole)):
        if bare and whole[i : i + len(bare)] == bare:
            return whole[:i]
    raise ValueError(
        f"the tokenizer writes 'a' as {bare} without special tokens and as {whole} with them: no beginning"
    )


def encode(
    text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a whole text, and the characters [start, end) that each stands for: none for special ones around it.

    Raises:
        ValueError: a tokenizer that does not tell offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for, and answers are found by "
            "that; use a fast tokenizer (one with a tokenizer.json, as AutoTokenizer loads it)"
        )
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    for i in reversed(range(len(ids))):  # special tokens are at (0, 0) wherever they stand; keep the offsets in order
        if offsets[i] != (0, 0):
            break
        offsets[i] = (len(text), len(text))
    return ids, offsets


def overlap(offsets: list[tuple[int, int]], start: int, end: int) -> range:
    """The positions of the tokens that stand for one of the characters [start, end), whatever else they stand for."""
    first = bisect.bisect_right(offsets, start, key=lambda token: token[1])
    return range(first, bisect.bisect_left(offsets, end, key=lambda token: token[0]))


def documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Texts as one stream of token ids: each with what the tokenizer puts before it, and an end-of-text token after it."""
    eos, stream = _eos(tokenizer), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        stream += ids if ids[-1] == eos else [*ids, eos]
    return stream


def cut(
    stream: list[int], start: int, length: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], int]:
    """(row of `length` tokens of a stream from `start` on, what begins a text included; where in the stream it ends).

    At the end of the stream the row is shorter.
    """
    front = begin(tokenizer)
    if stream[start : start + len(front)] == front:  # a document begins here
        start += len(front)
    end = start + length - len(front)
    ids = [*front, *stream[start:end]]
    return {"input_ids": ids, "labels": _labels(ids, front, tokenizer.eos_token_id)}, min(end, len(stream))


def _labels(ids: list[int], front: list[int], eos: int | None) -> list[int]:
    """The ids, but for what begins the row and each document in it."""
    labels = list(ids)
    for i in range(len(ids) if front else 0):
        if (i == 0 or ids[i - 1] == eos) and ids[i : i + len(front)] == front:
            labels[i : i + len(front)] = [IGNORE] * len(front)
    return labels


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, which ends every document; set tokenizer.eos_token")
    return tokenizer.eos_token_id


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
        that the cut at `length` removes are dropped. An answer may share its tokens with the space before it and the
        full stop behind it.
    Raises:
        ValueError: a tokenizer that does not tell offsets.
    """
    ids, offsets = encode(story.text, tokenizer)
    ids, rows = ids[:length], []
    for question in story.questions:
        answer = overlap(offsets, *question.answer)
        told = overlap(offsets, question.source_end - 1, question.source_end)
        if answer.stop <= len(ids):
            rows.append((answer.start, answer.stop, answer.start - told.start, question.candidates))
    return {"input_ids": ids, "labels": _labels(ids, begin(tokenizer), None), "questions": rows}


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
    """All pydocs of a split as one stream of token ids (`documents`)."""
    return documents(pydocs(split), tokenizer)


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


def rows(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024) -> Rows:
    """Rows to recover on from whatever the reader has: `texts` for a text file or a folder, `instructions` for the rest."""
    path = Path(source)
    kind = texts if path.is_dir() or path.suffix.lower() in TEXTS else instructions
    return kind(source, tokenizer, length=length)


def instructions(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024) -> Rows:
    """Alpaca-style records or chats, with labels on the answers alone.

    * Columns ``instruction`` and ``output`` (``input`` is optional): prompted as Alpaca prompts them, an end-of-text
      token behind the answer.
    * A column ``messages`` (``role`` and ``content`` of each turn; or ``conversations``, with ``from`` and ``value``): the
      tokenizer's chat template writes it, and what begins a text is the template's affair. The assistant's turns are
      scored, each with the token that ends it, so that the model learns to stop.

    The first record says which of the two the source holds.

    Args:
        source: a .json, .jsonl or .parquet file, or a hub id such as ``yahma/alpaca-cleaned``.
        length: tokens kept of each record. Records without an answer within it are dropped.
    Raises:
        FileNotFoundError: a path that does not exist, or a name the hub does not know. ConnectionError: no hub in reach.
        ImportError: a .parquet file or a hub id without the package `datasets`.
        ValueError: a file that is not in UTF-8 or not JSON, a missing column, something else than text in it, a chat that
            the template cannot write, or no record left. File, line or record are named.
    """
    made, records, write = Rows(), 0, None
    for where, record in tqdm(_records(source), desc="tokenizing instructions", unit="record"):
        write = write or (_chat if {"messages", "conversations"} & set(record) else _instruction)
        ids, labels = write(where, record, tokenizer)
        made.append(ids[:length], labels[:length])
        records += 1
    if not records:
        raise ValueError(f"{source} cannot be learned from: it is empty")
    if not len(made):
        raise ValueError(f"{source}: none of its {records} records has an answer within {length} tokens")
    return made


def _instruction(where: str, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids and labels of one Alpaca-style record."""
    if missing := {"instruction", "output"} - set(record):
        raise ValueError(
            f"{where} lacks the column(s) {sorted(missing)}; it has {sorted(record)}. Alpaca-style data needs "
            "'instruction' and 'output' in every record ('input' is optional), chats need 'messages' in every record"
        )
    asked, extra, answer = record["instruction"], record.get("input") or "", record["output"]
    if not all(isinstance(text, str) for text in (asked, extra, answer)):
        raise ValueError(f"{where}: instruction, input and output must be text; found {str(record)[:200]}")
    prompt = (PROMPT_WITH_INPUT if extra else PROMPT).format(instruction=asked, input=extra)
    ids, offsets = encode(prompt + answer, tokenizer)
    labels, eos = [IGNORE] * len(ids), _eos(tokenizer)
    _score(labels, ids, overlap(offsets, len(prompt), len(prompt + answer)))
    if not ids or ids[-1] != eos:
        return [*ids, eos], [*labels, eos]
    return ids, [*labels[:-1], eos]


def _score(labels: list[int], ids: list[int], where: range) -> None:
    labels[where.start : where.stop] = ids[where.start : where.stop]


# ---------------------------------------------------------------------------------------------
# chats
# ---------------------------------------------------------------------------------------------
_ROLES = {"human": "user", "gpt": "assistant"}  # of `conversations`


def _chat(where: str, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids and labels of one chat, as the tokenizer's template writes it.

    A template with ``{% generation %}`` says itself what the assistant's turns are. For any other, `_turns` finds them.
    """
    from jinja2 import TemplateError

    messages = _messages(where, record)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where} is a chat, and the tokenizer has no chat template; take the tokenizer of an instruct model, or set "
            "tokenizer.chat_template"
        )
    encode("", tokenizer)  # refuses a tokenizer without offsets
    try:
        if re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()):
            return _generated(messages, tokenizer)
        text, turns, ended = _turns(messages, tokenizer)
    except (TemplateError, ValueError) as error:
        raise ValueError(f"{where}: the chat template does not take this chat: {error}") from error
    ids, offsets = encode(text, tokenizer, add_special_tokens=False)  # the template has written them
    labels = [IGNORE] * len(ids)
    for start, end in turns:
        _score(labels, ids, overlap(offsets, start, end))
    if not ended:
        return [*ids, _eos(tokenizer)], [*labels, _eos(tokenizer)]
    return ids, labels


def _messages(where: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    name = "messages" if "messages" in record else "conversations"
    turns = record.get(name)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(
            f"{where}: 'messages' must be a list of turns with 'role' and 'content' in every record; found {str(record)[:200]}"
        )
    if name == "conversations":
        turns = [
            {"role": _ROLES.get(turn.get("from"), turn.get("from")), "content": turn.get("value")} | turn
            for turn in turns
        ]
    for turn in turns:
        if not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"{where}: role and content of a turn must be text; found {str(turn)[:200]}")
    return turns


def _generated(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the template marks as the assistant's, and the special token right behind it, if the mark leaves that out."""
    chat = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    _, offsets = encode(tokenizer.apply_chat_template(messages, tokenize=False), tokenizer, add_special_tokens=False)
    ids, mask, special, ended = chat["input_ids"], chat["assistant_masks"], _special(tokenizer), False
    for i, token in enumerate(ids):
        if i and mask[i - 1] and not mask[i]:  # a character may take several tokens, and the mask ends with the first
            mask[i] = int(offsets[i] == offsets[i - 1] or (token in special and not ended))
        ended = bool(mask[i]) and (ended or token in special)
    labels = [token if scored else IGNORE for token, scored in zip(ids, mask)]
    if mask[-1] and not ended:
        return [*ids, _eos(tokenizer)], [*labels, _eos(tokenizer)]
    return ids, labels


def _turns(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]], bool]:
    """The chat as the template writes it; its characters [start, end) that the assistant says; does the last turn end?

    The chat is written a second time with a mark for each content, which shows what the template puts between them. A turn
    ends with the first special token behind it.
    """
    marked = [{**turn, "content": f"\ue000{i}\ue001"} for i, turn in enumerate(messages)]
    text, marks = (tokenizer.apply_chat_template(turns, tokenize=False) for turns in (messages, marked))
    before, *rest = re.split("\ue000(\\d+)\ue001", marks)
    special = "|".join(re.escape(token) for token in sorted(_special(tokenizer).values(), key=len, reverse=True))
    turns, at, ended = [], len(before), True
    for i, behind in zip(map(int, rest[::2]), rest[1::2]):
        content = messages[i]["content"]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())  # some templates strip
        said = next((form for form in forms if text.startswith(form + behind, at)), None)
        if said is None or not text.startswith(before):
            raise ValueError(
                f"it changes what is said ({content[:100]!r}), so that the answers cannot be found; give it "
                "{% generation %} around them"
            )
        end = at + len(said)
        if messages[i]["role"] == "assistant" and said:
            stop = re.search(special, behind) if special else None
            turns.append((at, end + (stop.end() if stop else 0)))
            ended = stop is not None or i < len(messages) - 1
        at = end + len(behind)
    return text, turns, ended


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}


# ---------------------------------------------------------------------------------------------
# texts
# ---------------------------------------------------------------------------------------------
TEXTS = (".txt", ".md", ".rst")


def texts(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024) -> Rows:
    """A text file, or all text files in a folder and the folders in it, as rows of `length` tokens, all scored.

    Each file is one document. They are packed into one stream in the order of their paths (`begin` says how), and the
    stream is cut every `length` tokens; the last row is shorter.

    Args:
        source: a .txt, .md or .rst file, or a folder.
    Raises:
        FileNotFoundError: no such file, or a folder without one.
        ValueError: a file that is not in UTF-8, nothing but white space, or a length too small to score a token.
    """
    path, least = Path(source), max(2, len(begin(tokenizer)) + 1)
    if length < least:
        raise ValueError(f"length = {length}: a row of this tokenizer needs at least {least} tokens")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXTS and file.is_file())
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"no text file {'in' if path.is_dir() else 'at'} {path}; allowed are {', '.join(TEXTS)}"
        )
    contents = (text for text in map(read_text, tqdm(files, desc="tokenizing texts", unit="file")) if text.strip())
    stream, made, start = documents(contents, tokenizer), Rows(), 0
    if not stream:
        raise ValueError(f"{source} cannot be learned from: it is empty")
    while start < len(stream):
        row, start = cut(stream, start, length, tokenizer)
        made.append(row["input_ids"], row["labels"])
    return made


# ---------------------------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------------------------
_MARKS = (  # the longer first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


def read_text(path: str | Path) -> str:
    """A text in UTF-8, or in whatever Unicode its byte-order mark says; line ends become ``\\n``.

    Raises:
        FileNotFoundError: no such file. ValueError: another encoding, or no text; file, line and column are named.
    """
    data = Path(path).read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    data = data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before, byte = data[: error.start].decode(encoding, "replace"), data[error.start]
        raise ValueError(
            f"{_place(path, before)}: not {encoding.upper()} (byte 0x{byte:02x} at column "
            f"{len(before) - before.rfind(chr(10))}); convert it, for example with `iconv -f latin1 -t utf-8 {path} > "
            f"utf-8{Path(path).suffix}` if it is in Latin-1"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{_place(path, text[: text.index(chr(0))])}: a NUL character, so this is no text, or one in UTF-16 without a "
            f"byte-order mark; convert that with `iconv -f utf-16le -t utf-8 {path} > utf-8{Path(path).suffix}`"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place(path: str | Path, before: str) -> str:
    return f"{path}, line {before.count(chr(10)) + 1}"


def _records(source: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(where it stands, record) of a local file or of the hub's training split."""
    path = Path(source)
    if path.suffix in RECORDS or path.is_absolute() or path.exists():
        if not path.is_file():
            raise FileNotFoundError(
                f"no instruction file at {path}; give a {', '.join(RECORDS)} file of records, a {', '.join(TEXTS)} file of "
                "text, a folder of text files, or a hub id"
            )
        if path.suffix not in RECORDS:
            raise ValueError(
                f"{path}: allowed are {', '.join(RECORDS)} files of records and {', '.join(TEXTS)} files of text"
            )
        if path.suffix != ".parquet":
            return _json_records(path)
    return _dataset_records(source)


RECORDS = (".json", ".jsonl", ".parquet")


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of records, or one record a line, whatever the file's suffix is."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        found = ((f"{path}, record {i}", record) for i, record in enumerate(_json(path, text), 1))
    else:
        lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        found = ((f"{path}, line {i}", _json(path, line, i)) for i, line in lines)
    for where, record in found:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a record must be an object with named columns; found {str(record)[:200]}")
        yield where, record


def _json(path: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg} at column {error.colno}); needed is one record "
            "a line, or a list of records"
        ) from error


def _dataset_records(source: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A .parquet file or the hub's, through the package `datasets`."""
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
        from pyarrow import ArrowInvalid
    except ImportError as error:
        raise ImportError(
            f'{source}: .parquet files and the hub are read by the package datasets; pip install "liger_mini[course]"'
        ) from error
    local = Path(source).suffix == ".parquet"
    what = {"path": "parquet", "data_files": str(source)} if local else {"path": str(source)}
    try:
        records = datasets.load_dataset(**what, split="train")
    except (DatasetGenerationError, StopIteration, ArrowInvalid) as error:
        raise ValueError(f"{source} cannot be read: {error.__cause__ or error or 'it is empty'}") from error
    except (ConnectionError, DatasetNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(
            f"{source} is no file here, and the hub did not give it ({error}); give a .json, .jsonl or .parquet file "
            "with the columns instruction and output, or messages, instead"
        ) from error
    for i, record in enumerate(records, 1):
        yield f"{source}, record {i}", record


# ---------------------------------------------------------------------------------------------
# rows and batches
# ---------------------------------------------------------------------------------------------
class Rows(torch.utils.data.Dataset):
    """Rows of unequal length in four bytes a token and label; row i is a dictionary of two lists."""

    def __init__(self):
        self.ids, self.labels, self.ends = array("i"), array("i"), array("q", [0])

    def append(self, ids: list[int], labels: list[int]) -> None:
        """Add a row, unless there is nothing to learn from it: the first token is never predicted."""
        if any(label != IGNORE for label in labels[1:]):
            self.ids.extend(ids)
            self.labels.extend(labels)
            self.ends.append(len(self.ids))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        i = range(len(self))[i]  # from the end if negative; an IndexError if there is none
        part = slice(self.ends[i], self.ends[i + 1])
        return {"input_ids": self.ids[part].tolist(), "labels": self.labels[part].tolist()}


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
            return document_row(self.docs, random.Random(f"world/{self.seed}/{i}"), self.length, self.tokenizer)
        sentences = max(40, 10 * self.length // 64)  # enough to fill the row
        row = encode_story(story(self.seed, "train", i, sentences=sentences), self.tokenizer, self.length)
        return {"input_ids": row["input_ids"], "labels": row["labels"]}


def document_row(
    stream: list[int], rng: random.Random, length: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """`length` tokens from a random place of a token stream, all scored but what begins a text (`cut`)."""
    row, _ = cut(stream, rng.randrange(len(stream) - length), length, tokenizer)
    return row


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
