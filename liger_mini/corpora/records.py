"""``instructions``: Alpaca-style records (what the paper trains on) or chats, from a local file or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from liger_mini.corpora.batches import Rows
from liger_mini.corpora.files import read_records
from liger_mini.corpora.tokens import IGNORE, encode, end_of_text, overlap

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


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
    for where, record in tqdm(read_records(source), desc="tokenizing instructions", unit="record"):
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
    labels, eos = [IGNORE] * len(ids), end_of_text(tokenizer)
    _score(labels, ids, overlap(offsets, len(prompt), len(prompt + answer)))
    if not ids or ids[-1] != eos:
        return [*ids, eos], [*labels, eos]
    return ids, [*labels[:-1], eos]


def _score(labels: list[int], ids: list[int], where: range) -> None:
    labels[where.start : where.stop] = ids[where.start : where.stop]


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
        return [*ids, end_of_text(tokenizer)], [*labels, end_of_text(tokenizer)]
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
        return [*ids, end_of_text(tokenizer)], [*labels, end_of_text(tokenizer)]
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
