"""GGUF files of every family: the same logits as the model they were written from, and an ordinary model afterwards."""

import sys

import pytest
import torch

import liger_mini as lm
from liger_mini.__main__ import main
from liger_mini.convert import LigerModel
from liger_mini.support import gguf_files
from liger_mini.support.hub import open_model, open_tokenizer

from .conftest import FAMILIES

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (pip install -e '.[gguf]')")
from .gguf_writer import F16, F32, Q8_0, TOKENS, write  # noqa: E402

IDS = torch.randint(2, 97, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def talking(tiny, tmp_path):
    """A file with a tokenizer."""
    return write(tmp_path / "talking.gguf", tiny(vocab_size=len(TOKENS)), tokenizer=True)


@pytest.mark.parametrize("kind", [F32, F16], ids=["F32", "F16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_has_the_logits_of_the_model_it_was_written_from(tiny, tmp_path, family, kind):
    """The weights are the same numbers; only ε of the norms was rounded to float32, 3e-8 of it."""
    model = tiny(family)
    loaded = lm.load(write(tmp_path / "tiny.gguf", model, kind), dtype=torch.float32)
    if kind == F16:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(parameter.half())
    assert type(loaded) is type(model)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    own = lm.load(tmp_path / "tiny.gguf")
    assert own.dtype == {F32: torch.float32, F16: torch.float16}[kind]


def test_a_softmax_window_of_mistral_comes_along(tiny, tmp_path):
    model = tiny("mistral", sliding_window=5)
    loaded = lm.load(write(tmp_path / "tiny.gguf", model, extra=[("sliding_window", [5])]))
    assert loaded.config.sliding_window == 5
    assert lm.load(write(tmp_path / "all.gguf", tiny("mistral"))).config.sliding_window is None
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_the_rope_scaling_of_a_real_llama_3_is_found_again(tiny, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny("llama 3 rope", head_dim=64, max_position_embeddings=131072, rope_parameters=rope)
    file = write(tmp_path / "tiny.gguf", model)
    assert lm.load(file).config.rope_parameters == rope
    model.config.rope_parameters["low_freq_factor"] = 2.0  # a rule of one's own
    with pytest.raises(ValueError, match=r"is not Llama 3's rule; give the folder of the original"):
        lm.load(write(file, model))


def test_quantised_weights_become_an_ordinary_float32_model(tiny, tmp_path):
    model = tiny(hidden_size=64, intermediate_size=96)
    loaded = lm.load(write(tmp_path / "tiny.gguf", model, Q8_0))
    assert loaded.dtype == torch.float32
    assert not hasattr(loaded.config, "quantization_config")
    assert getattr(loaded, "hf_quantizer", None) is None
    for name, weight in model.named_parameters():
        found = loaded.get_parameter(name)
        # half a step of 1/127 of the largest weight, and the step itself rounded to float16: 127 steps of 2⁻¹¹ more
        bound = (0.5 + 127 * 2**-11) * weight.abs().max() / 127 if weight.ndim == 2 else 0
        assert (found - weight).abs().max() <= bound * 1.001


def test_what_is_read_linearizes_saves_and_loads(talking, tmp_path):
    model = lm.linearize(lm.load(talking), window=8)
    assert model.config.liger["base"] == str(talking)
    model.save_pretrained(tmp_path / "saved")
    again = lm.load(tmp_path / "saved")
    assert isinstance(again, LigerModel)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_the_tokenizer_comes_along_with_its_chat_template(talking, tmp_path):
    tokenizer = open_tokenizer(talking)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, open_tokenizer(tmp_path / "saved")):
        assert each.tokenize("the 1<|endoftext|>") == ["t", "he", "Ġ", "1", "<|endoftext|>"]  # digits stand alone
        assert (each.eos_token, each.pad_token) == ("<|endoftext|>", "<|pad|>")
        assert each.apply_chat_template([{"role": "user", "content": "hé"}], tokenize=False) == "hé<|endoftext|>"
        assert each.decode(each("hé 12").input_ids) == "hé 12"


def test_the_commands_take_a_file_or_its_folder(talking, tmp_path, capsys):
    assert main(["convert", "--model", str(talking), "--window", "8", "--out", str(tmp_path / "out")]) == 0
    assert "no parameter was added" in capsys.readouterr().out
    assert len(open_tokenizer(tmp_path / "out")) == len(TOKENS)
    assert isinstance(lm.load(tmp_path / "out"), LigerModel)
    assert lm.load(tmp_path).config.vocab_size == len(TOKENS)  # the folder has no other


def bad_file(name, tiny, folder):
    """A file with one thing wrong."""
    file, model = folder / "bad.gguf", tiny("llama")
    if name == "magic":
        file.write_bytes(b"PK\x03\x04 a zip")
    elif name == "empty":
        file.touch()
    elif name == "cut off":
        whole = write(file, model).read_bytes()
        file.write_bytes(whole[:-500])
    elif name == "cut off early":
        file.write_bytes(write(file, model, tokenizer=True).read_bytes()[:400])
    elif name == "architecture":
        write(file, model, family="gemma3")
    elif name == "experts":
        write(file, model, extra=[("expert_count", [8])])
    elif name == "rope":
        write(file, model, extra=[("rope_scaling_type", [gguf.RopeScalingType.YARN])])
    elif name == "parts":
        write(file, model, extra=[("uint16", ["split.count", 2])])
    elif name == "missing":
        write(file, model, left_out=("blk.1.ffn_up.weight",))
    elif name == "several":
        write(file, model)
        write(folder / "other.gguf", model)
        return folder
    elif name == "none":
        return folder / "nothing.gguf"
    return file


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("magic", ValueError, r"bad.gguf is not a GGUF file: it begins with b'PK\\x03\\x04'"),
        ("empty", ValueError, r"is not a GGUF file: it begins with b''"),
        ("cut off", ValueError, r"bad.gguf \([\d,]+ bytes\) is broken or cut off .*; copy or download it again"),
        ("cut off early", ValueError, r"\(400 bytes\) is broken or cut off"),
        ("architecture", ValueError, "architecture 'gemma3'; allowed are llama, mistral, qwen2, qwen3"),
        ("experts", ValueError, "mixture of 8 experts"),
        ("rope", ValueError, r"stretches its rotary embedding \('yarn'\)"),
        ("parts", ValueError, "one of 2 parts of a model; join them"),
        (
            "missing",
            ValueError,
            r"layers.1.mlp.up_proj.weight is missing in the file and of shape \(48, 32\) in the model",
        ),
        ("several", ValueError, r"holds 2 GGUF files; name one: .*bad.gguf, .*other.gguf"),
        ("none", FileNotFoundError, "no GGUF file at .*nothing.gguf"),
    ],
)
def test_a_bad_file_ends_with_what_is_wrong(tiny, tmp_path, capsys, name, error, words):
    file = bad_file(name, tiny, tmp_path)
    for read in (lm.load, open_model):
        with pytest.raises(error, match=words):
            read(file)
    assert main(["convert", "--model", str(file), "--out", str(tmp_path / "x")]) == 2
    assert "liger_mini convert: " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_without_a_tokenizer_the_file_says_so(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bad.gguf has no tokenizer that transformers can read"):
        open_tokenizer(write(tmp_path / "bad.gguf", tiny()))


def test_too_little_memory_is_told_before_the_work(tiny, tmp_path, monkeypatch):
    model = tiny()
    file = write(tmp_path / "tiny.gguf", model)
    sizes = [parameter.numel() for parameter in model.parameters()]
    needed = 4 * (sum(sizes) + max(sizes))
    monkeypatch.setattr(gguf_files, "_memory_left", lambda: needed)
    lm.load(file)
    monkeypatch.setattr(gguf_files, "_memory_left", lambda: needed - 1)
    with pytest.raises(MemoryError, match=f"needs {needed:,} bytes of memory as torch.float32, and {needed - 1:,} are"):
        lm.load(file)
    assert lm.load(file, dtype="bfloat16").dtype == torch.bfloat16  # two bytes a weight fit


def test_without_the_package_the_way_out_is_told(talking, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    for read in (lm.load, open_tokenizer):
        with pytest.raises(ImportError, match=r'needs the package gguf; run pip install "liger_mini\[gguf\]"'):
            read(talking)
