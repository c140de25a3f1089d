"""tinyworld, pydocs and instructions: what they promise about answers, splits and labels."""

import functools
import hashlib
import itertools
import json
import re

import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from liger_mini import corpora
from liger_mini.support.paths import data_dir

FOREIGN = ("metaspace always", "metaspace first", "llama 2", "unigram", "byte level", "both ends", "one token")


@functools.cache
def foreign(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer as other models have them, trained on the spot."""
    texts = [corpora.story(0, "train", i).text for i in range(40)] + [
        text[:3000] for text in corpora.pydocs("train")[:60]
    ]
    front, back = {"both ends": ("<s>", " </s>"), "one token": ("</s>", "")}.get(name, ("<s>", ""))
    special = {"special_tokens": ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"], "show_progress": False}
    space = pre_tokenizers.Metaspace(prepend_scheme="first" if name == "metaspace first" else "always")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if name == "words":
        words = sorted({word for text in texts for word in text.split()})
        tokenizer = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(special["special_tokens"] + words)}, "<unk>")
        )
        tokenizer.add_special_tokens(special["special_tokens"])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif name == "byte level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, **special))
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = space, decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=500, **special)
        if name == "unigram":
            tokenizer.model = models.Unigram()
            trainer = trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", **special)
        tokenizer.train_from_iterator(texts, trainer)
    if name == "llama 2":  # the space is written by the normalizer, and nothing splits the text before the merges
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{front} $A{back}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=front, eos_token="</s>", pad_token="</s>")


def test_tinyworld_is_deterministic_and_split():
    first = list(itertools.islice(corpora.tinyworld(7), 3))
    assert first == list(itertools.islice(corpora.tinyworld(7), 3))
    assert first != list(itertools.islice(corpora.tinyworld(8), 3))
    assert first != list(itertools.islice(corpora.tinyworld(7, "heldout"), 3))


def test_tinyworld_has_not_drifted():
    """The teacher was trained on these stories: another generator would be another corpus."""
    text = "".join(corpora.story(0, "train", i).text for i in range(20))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "47eaa1137c799e37"


def test_every_answer_was_told_and_is_the_latest():
    """Read the stories back with a parser of our own: an answer is the last value told for that person."""
    import re

    fact = re.compile(
        r"(\w+) (?:changed jobs and now |changed pets and now |moved away and now )?(lives in|keeps a|works as a) (\w+)\."
    )
    asked = updated = unasked = 0
    for index in range(50):
        story = corpora.story(3, "heldout", index)
        told, questions = {}, {question.answer for question in story.questions}
        for match in fact.finditer(story.text):
            person, relation, value = match.groups()
            if match.span(3) in questions:
                assert told[person, relation] == value
                asked += 1
            else:
                updated += (person, relation) in told
                told[person, relation] = value
        assert len(questions) == len(story.questions)
        known = {(m[1], m[2]) for m in fact.finditer(story.text) if m.span(3) in questions}
        unasked += len(told) - len(known)
    assert asked > 500
    assert updated > 20
    assert unasked > 20  # facts that are never asked, so that elimination does not pay


def test_encoded_questions_point_at_answers_and_their_source(teacher):
    _, tokenizer = teacher
    for index in range(20):
        row = corpora.encode_story(corpora.story(1, "heldout", index), tokenizer, 256)
        assert len(row["input_ids"]) <= 256
        for first, end, distance, candidates in row["questions"]:
            answer = tokenizer.decode(row["input_ids"][first:end])
            source = tokenizer.decode(row["input_ids"][first - distance - (end - first) + 1 : first - distance + 1])
            assert answer == source
            assert distance > 0
            assert candidates >= 1


def test_an_answer_may_share_its_token_with_the_full_stop():
    """With words as tokens, "Paris." is one: the question still has an answer of one token, and none for free."""
    story = corpora.story(0, "heldout", 0)
    words = sorted(set(story.text.split()))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    row = corpora.encode_story(story, PreTrainedTokenizerFast(tokenizer_object=tokenizer), 10_000)
    assert len(row["questions"]) == len(story.questions)
    for question, (first, end, _, _) in zip(story.questions, row["questions"]):
        assert [words[i] for i in row["input_ids"][first:end]] == [story.text[slice(*question.answer)] + "."]


def test_pydocs_split_is_disjoint_and_real():
    train, heldout = corpora.pydocs("train"), corpora.pydocs("heldout")
    assert not set(train) & set(heldout)
    assert sum(map(len, train)) > 1_000_000
    assert 0.03 < sum(map(len, heldout)) / sum(map(len, train)) < 0.3


def test_instructions_score_the_answer_alone(teacher):
    _, tokenizer = teacher
    dataset = corpora.instructions(data_dir() / "instructions.jsonl", tokenizer, length=512)
    records = [json.loads(line) for line in (data_dir() / "instructions.jsonl").read_text().splitlines()]
    assert len(dataset) == len(records)
    for row, record in zip(dataset, records):
        scored = [i for i, label in zip(row["input_ids"], row["labels"]) if label != corpora.IGNORE]
        assert tokenizer.decode(scored[:-1]) == record["output"]
        assert scored[-1] == tokenizer.eos_token_id
        assert record["instruction"] in tokenizer.decode(row["input_ids"])


def test_bad_instruction_files_are_named(tmp_path, teacher):
    _, tokenizer = teacher
    with pytest.raises(FileNotFoundError, match="no instruction file"):
        corpora.instructions(tmp_path / "none.jsonl", tokenizer)
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "!"}) + "\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['instruction', 'output'\]"):
        corpora.instructions(path, tokenizer)
    path.write_text(json.dumps({"instruction": "word " * 500, "output": "!"}) + "\n")
    with pytest.raises(ValueError, match="none of its 1 records"):
        corpora.instructions(path, tokenizer, length=64)
    with pytest.raises(ValueError, match="'train' and 'heldout'"):
        corpora.pydocs("test")


def test_collator_pads_right_and_hides_it():
    batch = corpora.Collator(9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert torch.equal(batch["input_ids"], torch.tensor([[1, 2, 3], [4, 9, 9]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert torch.equal(batch["labels"], torch.tensor([[-100, 2, 3], [4, -100, -100]]))


@pytest.mark.parametrize("answer", [ConnectionError("no route"), DatasetNotFoundError("unknown or gated")], ids=repr)
def test_instructions_the_hub_does_not_give_are_explained(teacher, monkeypatch, answer):
    def load_dataset(*args, **kwargs):
        raise answer

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    kind = ConnectionError if isinstance(answer, ConnectionError) else FileNotFoundError
    with pytest.raises(kind, match=r"did not give it \(.*\); give a .json, .jsonl or .parquet file"):
        corpora.instructions("someone/alpaca", teacher[1])


@pytest.mark.parametrize("stories", [1, 3])
def test_the_world_is_stories_and_every_so_often_documentation(stories):
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "teacher")
    world, period = corpora.World(tokenizer, 12, length=64, stories=stories, seed=5), stories + 1
    for i in range(12):
        story = corpora.encode_story(corpora.story(5, "train", i), tokenizer, 64)["input_ids"]
        assert (world[i]["input_ids"] == story) == (i % period != stories)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="allowed are whole numbers ≥ 1"):
            corpora.World(tokenizer, 12, stories=wrong)


def test_interrupted_stories_are_the_worlds_with_documentation_in_the_middle():
    """What was told stays before the interruption; rows in between are ordinary ones."""
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "teacher")
    rows, world = corpora.Interrupted(tokenizer, 40, length=1024), corpora.World(tokenizer, 40, stories=3)
    lengths = []
    for i in range(40):
        ids = rows[i]["input_ids"]
        assert rows[i] == rows[i]
        if i % 2:
            assert ids == world[i // 2]["input_ids"]
            continue
        story = world.story(i)["input_ids"]
        lengths.append(len(ids) - len(story))
        before = next(n for n in range(len(story), 0, -1) if ids[:n] == story[:n])
        assert ids[before - len(story) :] == story[before:] or any(
            ids[:n] + ids[n - len(story) :] == story for n in range(1, len(story))
        )
        assert len(story) <= lengths[-1] <= 1024 - len(story)
    assert max(lengths) - min(lengths) > 200
    with pytest.raises(ValueError, match=r"length = 256: a story has up to 256 tokens"):
        corpora.Interrupted(tokenizer, 4, length=256)


def test_a_phone_book_answers_what_it_told():
    """Every answer is the number told for that person earlier in the row; no two people share one; seeds are other books."""
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "teacher")
    rows = corpora.PhoneBooks(tokenizer, 6, length=900)
    seen = []
    for i in range(6):
        row = rows[i]
        assert row == rows[i]
        assert len(row["input_ids"]) == 900
        text, told = tokenizer.decode(row["input_ids"]), {}
        for answer, person, number in re.findall(r"(Answer: )?Call (\w+) at (\d{4})\.", text):
            if answer:
                assert told[person] == number
            else:
                assert person not in told
                told[person] = number
        assert len(set(told.values())) == len(told) >= 6
        seen.append(told)
    assert seen[0] != seen[1]
    assert corpora.PhoneBooks(tokenizer, 6, length=900, seed=1)[0] != rows[0]
