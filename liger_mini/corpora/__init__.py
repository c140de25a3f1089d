"""What one feeds a model (chapter 08): tinyworld, pydocs, and the reader's own instructions, chats and texts.

Every corpus becomes rows of ``input_ids`` and ``labels`` (-100 = not scored).
"""

from liger_mini.corpora.answers import OwnAnswers, held_out_answers, own_answers
from liger_mini.corpora.batches import Collator, Documentation, Interrupted, Rows, SeededRows, World
from liger_mini.corpora.documentation import pydocs, pydocs_rows, pydocs_tokens, pysource, source_rows
from liger_mini.corpora.files import read_text
from liger_mini.corpora.phone_books import PhoneBooks
from liger_mini.corpora.plain import rows, texts
from liger_mini.corpora.records import instructions
from liger_mini.corpora.stories import PEOPLE, RELATIONS, Story, encode_story, story, tinyworld
from liger_mini.corpora.tokens import IGNORE, begin, cut, document_row, documents, encode, overlap, spread

__all__ = [
    "IGNORE",
    "PEOPLE",
    "RELATIONS",
    "Collator",
    "Documentation",
    "Interrupted",
    "OwnAnswers",
    "PhoneBooks",
    "Rows",
    "SeededRows",
    "Story",
    "World",
    "begin",
    "cut",
    "document_row",
    "documents",
    "encode",
    "encode_story",
    "held_out_answers",
    "instructions",
    "overlap",
    "own_answers",
    "pydocs",
    "pydocs_rows",
    "pydocs_tokens",
    "pysource",
    "read_text",
    "rows",
    "source_rows",
    "spread",
    "story",
    "texts",
    "tinyworld",
]
