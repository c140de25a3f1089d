"""Words of the glossary, linked where a chapter first uses them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

VERB = re.compile(r"\b(can|could|may|must|will|would|do|does|did|to|not|you|we|they|it)( at most| hardly| not)? $")
NOT_IN = (nodes.title, nodes.reference, pending_xref, nodes.literal, nodes.math, nodes.raw, nodes.caption)


def entries(glossary: str) -> list[str]:
    """The glossary's headwords, as it spells them.

    Args:
        glossary: the page's text, with one `{glossary}` block.
    """
    block = glossary.partition("{glossary}\n")[2].partition("\n:::")[0]
    return [line for line in block.splitlines() if re.match(r"\w", line)]


def forms(entry: str) -> list[str]:
    """What a text may say for a headword, as a regular expression each: its plural, a verb's forms, several words joined."""
    words = ["[- ]".join(map(re.escape, re.split("[- ]", word))) for word in entry.split(", ")]
    return [f"{word[:-1]}(?:e|es|ed|ing)" if word.endswith("e") else f"{word}s?" for word in words]


def link_first_uses(app: Any, document: nodes.document) -> None:
    """In a chapter the first use of each headword leads to the glossary; in headings, links, code and formulas none does."""
    if not re.match(r"notebooks/\d", app.env.docname):
        return
    headwords = entries(Path(app.srcdir, "book", "glossary.md").read_text("utf-8"))
    left = {form: entry for entry in headwords for form in forms(entry)}
    for text in list(document.findall(nodes.Text)):
        if _is_prose(text):
            text.parent.replace(text, _linked(text, left))


def _is_prose(text: nodes.Text) -> bool:
    above, inside = text.parent, []
    while above is not None:
        inside.append(above)
        above = above.parent
    return any(isinstance(node, nodes.paragraph) for node in inside) and not any(
        isinstance(node, NOT_IN) for node in inside
    )


def _linked(text: nodes.Text, left: dict[str, str]) -> list[nodes.Node]:
    """The text in pieces; headwords it links are taken out of `left`, which holds those not linked yet."""
    said, pieces, begin = text.astext(), [], 0
    emphasised = isinstance(text.parent, nodes.emphasis)
    for match in re.finditer(_any_of(left), said) if left else ():
        entry = next((e for form, e in left.items() if re.fullmatch(form, match[0], re.IGNORECASE)), None)
        # "inside, between, outside" are ordinary words unless they stand out
        if entry is None or ("," in entry and not emphasised) or _another_word(match[0], said[: match.start()]):
            continue
        link = pending_xref("", nodes.inline("", match[0]), refdomain="std", reftype="term", reftarget=entry)
        pieces += [nodes.Text(said[begin : match.start()]), link]
        begin = match.end()
        for form in [form for form, e in left.items() if e == entry]:
            del left[form]
    return [*pieces, nodes.Text(said[begin:])]


def _another_word(word: str, before: str) -> bool:
    """A name, such as Windows, or a verb, as in "can reach": written like a headword, and not it."""
    begins = not before.strip() or before.rstrip()[-1] in ".:?!("
    return (word[0].isupper() and not word.isupper() and not begins) or bool(VERB.search(before))


def _any_of(left: dict[str, str]) -> str:
    # "Gated Retention" is a name
    return rf"(?<![\w-])(?i:{'|'.join(sorted(left, key=len, reverse=True))})(?![\w-]| [A-Z])"
