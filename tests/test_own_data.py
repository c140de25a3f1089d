"""What readers bring: other tokenizers, chats, plain text, other encodings; and what begins a text, everywhere."""

import hashlib
import json

import pytest
from transformers import AutoTokenizer

from liger_mini import corpora
from liger_mini.corpora.records import PROMPT
from liger_mini.evaluation import HeldOut, text_loss
from liger_mini.support.paths import data_dir
from tests.test_corpus import FOREIGN, foreign

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{GEN}{{ m['content'] }}<|im_end|>{ENDGEN}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
)
TEMPLATES = {
    "with generation marks": CHATML.replace("{GEN}", "{% generation %}").replace("{ENDGEN}", "{% endgeneration %}"),
    "without": CHATML.replace("{GEN}", "").replace("{ENDGEN}", ""),
}
CHAT = {
    "messages": [
        {"role": "user", "content": "Where does Anna live?"},
        {"role": "assistant", "content": "Anna lives in Paris."},
        {"role": "user", "content": "And Otto?"},
        {"role": "assistant", "content": "Otto lives in Rome."},
    ]
}


def scored(row, tokenizer):
    """The text of each run of scored labels."""
    runs, before = [], False
    for token, label in zip(row["input_ids"], row["labels"]):
        assert label in (token, corpora.IGNORE)
        if label != corpora.IGNORE:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != corpora.IGNORE
    return [tokenizer.decode(run).strip() for run in runs]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_the_embedded_teachers_rows_are_what_they_always_were(teacher):
    """Its tokenizer puts nothing before a text; hashes of the first version's rows."""

    def digest(x):
        return hashlib.sha256(json.dumps(x).encode()).hexdigest()[:16]

    tokenizer = teacher[1]
    stories = [corpora.encode_story(corpora.story(0, "heldout", i), tokenizer, 256) for i in range(8)]
    rows = corpora.instructions(data_dir() / "instructions.jsonl", tokenizer, length=256)
    assert corpora.begin(tokenizer) == []
    assert digest(stories) == "33e074d4f8687300"
    assert digest([[row["input_ids"], row["labels"]] for row in rows]) == "027a87a719a9adf9"


@pytest.mark.parametrize("name", FOREIGN)
def test_every_row_begins_as_the_tokenizer_begins_a_text(name):
    tokenizer = foreign(name)
    front = corpora.begin(tokenizer)
    assert front == [tokenizer.bos_token_id]
    world, held_out = corpora.World(tokenizer, 6, length=96), HeldOut(tokenizer, stories=2, documents=2, length=96)
    for row in [*(world[i] for i in range(6)), *held_out.story_rows, *held_out.document_rows]:
        assert row["input_ids"][:1] == front
        assert row["labels"][0] == corpora.IGNORE
        assert len(row["input_ids"]) <= 96
        assert [a for a, b in zip(row["input_ids"][1:], row["labels"][1:]) if b == corpora.IGNORE] == [
            a
            for before, a in zip(row["input_ids"], row["input_ids"][1:])
            if before == tokenizer.eos_token_id and [a] == front
        ]


@pytest.mark.parametrize("name", FOREIGN)
def test_answers_in_stories_are_found(name):
    tokenizer = foreign(name)
    story = corpora.story(0, "heldout", 1)
    row = corpora.encode_story(story, tokenizer, 10_000)
    assert len(row["questions"]) == len(story.questions) > 3
    for (first, end, distance, _), question in zip(row["questions"], story.questions):
        answer = story.text[slice(*question.answer)]
        assert answer in tokenizer.decode(row["input_ids"][first:end])
        assert answer not in tokenizer.decode(row["input_ids"][first + 1 : end])
        assert answer in tokenizer.decode(row["input_ids"][max(0, first - distance - 8) : first - distance + 2])


@pytest.mark.parametrize("name", FOREIGN)
def test_instructions_are_one_text(name, tmp_path):
    """The ids are those of the whole text; the answer and an end are scored, and nothing of the question."""
    tokenizer = foreign(name)
    record = {"instruction": "Say where Anna lives.", "output": "Paris, since May."}
    (row,) = corpora.instructions(write(tmp_path / "a.jsonl", record), tokenizer, length=500)
    whole = tokenizer(PROMPT.format(instruction=record["instruction"]) + record["output"])["input_ids"]
    eos = tokenizer.eos_token_id
    assert row["input_ids"] == (whole if whole[-1] == eos else [*whole, eos])
    (said,) = scored(row, tokenizer)
    assert said.replace("\n", "").removesuffix(tokenizer.eos_token).strip() == record["output"]
    assert row["labels"][-1] == eos


class Even:
    """Gives every token the same probability, and notes the rows it was given."""

    training, config = False, type("Config", (), {"pad_token_id": 0})
    device = "cpu"

    def __init__(self, vocabulary):
        self.vocabulary, self.rows = vocabulary, []

    def eval(self):
        return self

    def train(self, mode):
        return self

    def __call__(self, input_ids, attention_mask, use_cache):
        import torch

        self.rows += [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask)]
        return type("Output", (), {"logits": torch.zeros(*input_ids.shape, self.vocabulary)})


@pytest.mark.parametrize("name", FOREIGN)
def test_text_loss_scores_every_token_behind_a_beginning(name):
    tokenizer = foreign(name)
    text = corpora.story(0, "heldout", 3).text
    ids, model = tokenizer(text, add_special_tokens=False)["input_ids"], Even(len(tokenizer))
    _, count = text_loss(model, text, tokenizer, length=33)
    assert count == len(ids)
    assert [token for row in model.rows for token in row[1:]] == ids
    assert {row[0] for row in model.rows} == {tokenizer.bos_token_id}
    assert max(map(len, model.rows)) == 33


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["metaspace first", "llama 2", "byte level"])
def test_the_assistants_turns_of_a_chat_are_scored(name, template, tmp_path):
    tokenizer = foreign(name)
    tokenizer.chat_template = TEMPLATES[template]
    (row,) = corpora.rows(write(tmp_path / "chat.jsonl", CHAT), tokenizer, length=500)
    said = scored(row, tokenizer)
    assert [text.replace(" ", "") for text in said] == ["AnnalivesinParis.<|im_end|>", "OttolivesinRome.<|im_end|>"]
    assert row["input_ids"] == tokenizer.apply_chat_template(CHAT["messages"], return_dict=True)["input_ids"]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1  # the template wrote it


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "line 2: 'messages' must be a list of turns"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2: role and content of a turn must be text"),
        ({"instruction": "a", "output": "b"}, "line 2"),  # the first line was a chat
    ],
)
def test_a_chat_that_cannot_be_read_is_named(record, words, tmp_path):
    tokenizer = foreign("byte level")
    tokenizer.chat_template = TEMPLATES["without"]
    with pytest.raises(ValueError, match=words):
        corpora.instructions(write(tmp_path / "chat.jsonl", CHAT, record), tokenizer)


def test_a_chat_needs_a_template(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"chat.jsonl, line 1 is a chat, and the tokenizer has no chat template"):
        corpora.rows(write(tmp_path / "chat.jsonl", CHAT), teacher[1])


@pytest.mark.parametrize("name", ["embedded", "llama 2", "byte level", "one token"])
def test_texts_are_cut_into_rows(name, tmp_path):
    """A folder's files in order, documents with beginning and end, nothing lost; a file alone as well."""
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "teacher") if name == "embedded" else foreign(name)
    contents = [corpora.story(1, "heldout", i).text for i in range(3)]
    (tmp_path / "deep").mkdir()
    for path, text in zip(("a.txt", "b.md", "deep/c.rst"), contents):
        (tmp_path / path).write_text(text, "utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    rows = corpora.rows(tmp_path, tokenizer, length=40)
    front, eos = corpora.begin(tokenizer), tokenizer.eos_token_id
    assert all(len(row["input_ids"]) == 40 for row in list(rows)[:-1])
    assert all(row["input_ids"][: len(front)] == front for row in rows)
    predicted = [label for row in rows for label in row["labels"][len(front) :] if label != corpora.IGNORE]
    expected = [i for text in contents for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]]
    assert predicted == expected
    assert len(corpora.rows(tmp_path / "a.txt", tokenizer, length=40)) < len(rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_with_its_mark_is_read(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("Straße\r\nin Köln".encode(encoding))
    assert corpora.read_text(tmp_path / "a.txt") == "Straße\nin Köln"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
def test_another_encoding_is_named_with_file_line_and_way_out(suffix, tmp_path, teacher):
    path = tmp_path / f"data{suffix}"
    line = '{"instruction": "Say it.", "output": "%s"}\n'
    path.write_bytes((line % "good" + line % "Straße").encode("latin-1"))
    with pytest.raises(
        ValueError, match=rf"data{suffix}, line 2: not UTF-8 \(byte 0xdf at column 4\d\).*iconv -f latin1"
    ):
        corpora.rows(path, teacher[1], length=64)
    path.write_bytes("first\nsecond".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"line 1: a NUL character.*utf-16le"):
        corpora.rows(path, teacher[1], length=64)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction"', "a.jsonl, line 2: not JSON"),
        ("a.json", '[{"instruction": "a", "output": "b"},\n 3]', "a.json, record 2: a record must be an object"),
        ("a.jsonl", '{"instruction": "a", "output": 3}', "a.jsonl, line 1: instruction, input and output must be text"),
        ("a.jsonl", '{"question": "a"}', r"line 1 lacks the column\(s\) \['instruction', 'output'\]"),
        ("a.txt", " \n\t", "it is empty"),
        ("a.jsonl", "", "it is empty"),
    ],
)
def test_records_that_cannot_be_read_are_named(file, content, words, tmp_path, teacher):
    (tmp_path / file).write_text(content, "utf-8")
    with pytest.raises(ValueError, match=words):
        corpora.rows(tmp_path / file, teacher[1], length=64)


def test_a_tokenizer_without_offsets_is_refused(teacher):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not tell which characters a token stands for"):
        corpora.encode("text", Slow())
