"""GGUF files, the checkpoints of llama.cpp: dequantised into an ordinary model, with their tokenizer.

Such a file holds a config under names of its own, a tokenizer, and the weights, most of them in blocks of a few bits. The
package `gguf` reads it, transformers rebuilds the tokenizer. The model is not made by transformers: what it makes counts
as quantised, so it can be neither saved nor linearized, and it has lost Llama 3's rope scaling and a head's own width.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
PERMUTED = (
    "llama",
    "mistral",
)  # llama.cpp rotates neighbours, transformers halves: it reorders the rows of W_q and W_k
MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"  # [K/2]: what Llama 3 divides its frequencies by


def find_gguf(source: str | Path) -> Path | None:
    """The GGUF file that `source` is, or that is the only one in this folder; None where it is another kind of model.

    Raises:
        FileNotFoundError: a name that ends in .gguf, and no such file. ValueError: a folder with several.
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(source.glob("*.gguf"))
        if not files or (source / "config.json").is_file():
            return None
        if len(files) > 1:
            raise ValueError(f"{source} holds {len(files)} GGUF files; name one: {', '.join(map(str, files))}")
        return files[0]
    if source.suffix.lower() != ".gguf":
        return None
    if not source.is_file():
        raise FileNotFoundError(f"no GGUF file at {source}")
    return source


def load_gguf(path: Path, dtype: torch.dtype | str | None = "auto", **kwargs: Any) -> PreTrainedModel:
    """The model in a GGUF file, with weights in an ordinary float type: it saves, trains and linearizes as any other.

    Args:
        dtype: "auto" and None keep the file's float type, and take float32 where its weights are quantised. The weights
            are dequantised one by one, so that memory holds one copy in this type and the largest of them in float32.
        kwargs: passed on to transformers' `from_pretrained`.
    Raises:
        ValueError: no GGUF file, a broken one, or one that holds another architecture, rope scaling or type of block.
        ImportError: the package `gguf` is not installed. MemoryError: the weights need more than this machine has left.
    """
    reader = _read(path)
    config = _config(path, reader)
    kind = _check_tensors(path, reader, config)
    dtype = _dtype(reader) if dtype in ("auto", None) else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    _check_memory(path, reader, dtype)
    weights = _weights(path, reader, config, dtype)
    model = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **kwargs)
    model.name_or_path = model.config.name_or_path = str(path)
    return model


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, with its chat template.

    Raises:
        ValueError: there is none that transformers can read. ImportError: the package `gguf` is not installed.
    """
    metadata = _metadata(_read(path))
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} holds no complete tokenizer: {error} is missing") from error
    if metadata.get("tokenizer.ggml.pre") == "smollm":  # its digits stand alone, which transformers does not know
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


def _read(path: Path) -> Any:
    """A `gguf.GGUFReader` of the file.

    Raises:
        ValueError: it is none, or one that breaks off. ImportError: `gguf` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(f'reading {path} needs the package gguf; run pip install "liger_mini[gguf]"') from error

    class Reader(GGUFReader):
        """With the file as a plain array: slices of a memmap, one for each word of the vocabulary, are slow."""

        data = property(lambda self: self.array, lambda self, mapped: setattr(self, "array", np.asarray(mapped)))

    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it begins with {magic!r}, and a GGUF file with b'GGUF'")
    try:
        return Reader(path)
    except (ValueError, IndexError, KeyError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is broken or cut off ({error}); copy or download it again"
        ) from error


def _metadata(reader: Any) -> dict[str, Any]:
    """Its metadata without the long lists: name -> number or text."""
    return {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}


def _config(path: Path, reader: Any) -> PreTrainedConfig:
    """The config that the metadata tells."""
    metadata = _metadata(reader)
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(f"{path} holds a model of architecture {family!r}; allowed are {', '.join(FAMILIES)}")
    own = {name.removeprefix(f"{family}."): value for name, value in metadata.items() if name.startswith(f"{family}.")}
    _check_kind(path, own, metadata.get("split.count", 1))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        width = own["embedding_length"] // own["attention.head_count"]
        width = own.get("attention.key_length", own.get("rope.dimension_count", width))
        config = FAMILIES[family](
            vocab_size=int(tensors["token_embd.weight"].shape[-1]),
            hidden_size=own["embedding_length"],
            intermediate_size=own["feed_forward_length"],
            num_hidden_layers=own["block_count"],
            num_attention_heads=own["attention.head_count"],
            num_key_value_heads=own.get("attention.head_count_kv", own["attention.head_count"]),
            head_dim=width,
            max_position_embeddings=own["context_length"],
            rms_norm_eps=own["attention.layer_norm_rms_epsilon"],
            rope_parameters=_rope(path, own, width, tensors.get(ROPE_FACTORS)),
            tie_word_embeddings="output.weight" not in tensors,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
            pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
            **({"sliding_window": own.get("attention.sliding_window")} if family == "mistral" else {}),
        )
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: it does not tell {error}; convert the original model again") from error
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    return config


def _check_kind(path: Path, own: dict[str, Any], parts: int) -> None:
    """Raise where a file of an allowed architecture holds more than our model of it computes."""
    if parts > 1:
        raise ValueError(f"{path} is one of {parts} parts of a model; join them with llama-gguf-split --merge")
    if own.get("expert_count"):
        raise ValueError(f"{path} holds a mixture of {own['expert_count']} experts; allowed are models without experts")
    if own.get("rope.scaling.type", "none") != "none":
        raise ValueError(
            f"{path} stretches its rotary embedding ({own['rope.scaling.type']!r}), which is read from Llama 3 alone; "
            "give the original model's folder instead"
        )


def _rope(path: Path, own: dict[str, Any], width: int, factors: Any | None) -> dict[str, Any]:
    """The parameters of the rotary embedding; Llama 3's are found again from `factors`, a tensor of [K/2].

    A file tells only by what each frequency is divided. Llama 3 leaves wavelengths up to a fourth of the original context
    as they are and divides those beyond that context by one factor, so the context is the power of two that gives the numbers.
    """
    theta = own.get("rope.freq_base", 10000.0)
    if factors is None:
        return {"rope_type": "default", "rope_theta": theta}
    wavelengths, divisors = 2 * math.pi * theta ** (np.arange(0, width, 2) / width), factors.data.reshape(-1)
    far = {"factor": round(float(divisors.max()), 4), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for context in (2**k for k in range(1, 1 + int(math.log2(own["context_length"])))):
        near = np.clip((context / wavelengths - 1) / 3, 0, 1)
        if np.allclose(1 / ((1 - near) / far["factor"] + near), divisors, rtol=1e-4):
            return {"rope_type": "llama3", "rope_theta": theta, "original_max_position_embeddings": context, **far}
    raise ValueError(
        f"{path} divides its rotary frequencies by {np.round(divisors, 3).tolist()}, which is not Llama 3's rule; give the "
        "folder of the original model instead"
    )


def _name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; a name that is not known stays as it is."""
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if parts is None or parts[2] not in MODULES:
        return name
    return f"{'' if parts[1] is None else f'model.layers.{parts[1]}.'}{MODULES[parts[2]]}.{parts[3]}"


def _check_tensors(path: Path, reader: Any, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the model, once the file has exactly its tensors.

    Raises:
        ValueError: it has others, lacks some, or has some of another shape.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {_name(t.name): tuple(reversed(t.shape.tolist())) for t in reader.tensors if t.name != ROPE_FACTORS}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            there, here = (f"of shape {shapes[name]}" if name in shapes else "missing" for shapes in (wanted, found))
            raise ValueError(
                f"{path} does not hold a {type(model).__name__}: {name} is {here} in the file and {there} in the model; "
                "give the folder of the original model instead"
            )
    return type(model)


def _dtype(reader: Any) -> torch.dtype:
    """The float type in which a file keeps its matrices; float32 where they are quantised."""
    kinds = {tensor.tensor_type.name for tensor in reader.tensors} - {"F32"}
    return {("F16",): torch.float16, ("BF16",): torch.bfloat16}.get(tuple(kinds), torch.float32)


def _memory_left() -> int | None:
    """Bytes that this machine still has (caches that would give way count), where the system tells: on Linux."""
    told = Path("/proc/meminfo")
    left = re.search(r"MemAvailable:\s+(\d+) kB", told.read_text()) if told.is_file() else None
    return 1024 * int(left[1]) if left else None


def _check_memory(path: Path, reader: Any, dtype: torch.dtype) -> None:
    """Raise where the weights in this type, and the largest of them in float32 beside them, are more than what is left."""
    sizes = [int(tensor.n_elements) for tensor in reader.tensors]
    needed, left = sum(sizes) * dtype.itemsize + 4 * max(sizes), _memory_left()
    if left is not None and needed > left:
        raise MemoryError(
            f"{path} needs {needed:,} bytes of memory as {dtype}, and {left:,} are available; bfloat16 takes two bytes a "
            "weight, float32 four"
        )


def _weights(path: Path, reader: Any, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Each weight under transformers' name, dequantised."""
    from gguf import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        try:
            weight = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{path} holds {tensor.name} as {tensor.tensor_type.name}, which the package gguf cannot dequantise; use a "
                "file of another quantisation, such as Q8_0 or F16"
            ) from error
        module = tensor.name.split(".")[-2]
        if config.model_type in PERMUTED and module in heads:
            pairs = weight.reshape(heads[module], config.head_dim // 2, 2, -1)  # [H, K/2, 2, D]
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        weights[_name(tensor.name)] = torch.tensor(weight, dtype=dtype)
    return weights
