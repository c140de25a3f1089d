"""``pydocs``: the Python documentation that is already on the reader's disk.

It measures ordinary language modelling, and nothing of it is copied into this repository. Beside it ``pysource``, the
source code of the same library, which is only measured on.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.stories import Split, check_split
from liger_mini.corpora.tokens import documents, spread

_NOT_READ = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"}
_NO_SOURCE = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}  # tests, tables, and topics again


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


def _modules(without: set[str]) -> Iterator[tuple[Path, Path]]:
    """(path inside the standard library, path) of its modules, in the order of the paths."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not without.intersection(relative.parts):
            yield relative, path


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
    for relative, path in _modules(_NOT_READ):
        documents[f"module:{relative.as_posix()}"] = _module_text(path)
    return {name: text for name, text in sorted(documents.items()) if len(text) >= 200}


def pydocs(split: Split = "train") -> list[str]:
    """The documents of the running Python's standard library, in a fixed order.

    A document is one language-reference topic or one module's docstrings with their signatures. It is
    held out if the first byte of the SHA-256 of its name is below 26 (one in ten), so the split
    does not depend on the Python version; the texts do, a little.
    """
    check_split(split)
    return [text for name, text in _pydocs_documents().items() if _held_out(name) == (split == "heldout")]


def _held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 26


def pydocs_tokens(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All pydocs of a split as one stream of token ids (`documents`)."""
    return documents(pydocs(split), tokenizer)


def pydocs_rows(tokenizer: PreTrainedTokenizerBase, *, length: int = 1024, rows: int | None = None) -> list[list[int]]:
    """Held-out pydocs as rows of `length` tokens, each begun as the tokenizer begins a text.

    Args:
        rows: how many, spread evenly over the documents; None for all there are.
    Raises:
        ValueError: more rows than there are.
    """
    return [row["input_ids"] for row in spread(pydocs_tokens("heldout", tokenizer), length, tokenizer, rows)]


@functools.cache
def pysource() -> tuple[str, ...]:
    """The standard library's source code, as far as no `pydocs` row to train on comes from it, in the order of the paths.

    A module's docstrings stand in its source. So these are the modules that pydocs holds out or never reads (IDLE,
    lib2to3, turtledemo), whole, without tests and tables. Which there are depends on Python's version and distributor.
    """
    return tuple(
        text
        for relative, path in _modules(_NO_SOURCE)
        if _NOT_READ.intersection(relative.parts) or _held_out(f"module:{relative.as_posix()}")
        if (text := path.read_text("utf-8", errors="replace")).strip()
    )


def source_rows(tokenizer: PreTrainedTokenizerBase, *, length: int = 1024, rows: int | None = 48) -> list[list[int]]:
    """`pysource` as rows, like `pydocs_rows`: a kind of text that a recovery on documentation does not train on.

    Raises:
        ValueError: more rows than there are.
    """
    return [row["input_ids"] for row in spread(documents(pysource(), tokenizer), length, tokenizer, rows)]
