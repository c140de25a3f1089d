"""``pydocs``: the Python documentation that is already on the reader's disk.

It measures ordinary language modelling, and nothing of it is copied into this repository.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.stories import Split, check_split
from liger_mini.corpora.tokens import documents

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
    check_split(split)
    heldout = split == "heldout"
    return [
        text
        for name, text in _pydocs_documents().items()
        if (hashlib.sha256(name.encode()).digest()[0] < 26) == heldout
    ]


def pydocs_tokens(split: Split, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All pydocs of a split as one stream of token ids (`documents`)."""
    return documents(pydocs(split), tokenizer)
