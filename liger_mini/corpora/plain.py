"""``texts``: a plain text file, or a folder of them; and `rows`, which takes these as well as records."""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.batches import Rows
from liger_mini.corpora.files import TEXTS, read_text
from liger_mini.corpora.records import instructions
from liger_mini.corpora.tokens import begin, cut, documents


def rows(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, length: int = 1024) -> Rows:
    """Rows to recover on from whatever the reader has: `texts` for a text file or a folder, `instructions` for the rest."""
    path = Path(source)
    kind = texts if path.is_dir() or path.suffix.lower() in TEXTS else instructions
    return kind(source, tokenizer, length=length)


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
