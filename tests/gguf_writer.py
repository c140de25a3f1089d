"""GGUF files for tests, written as llama.cpp's converter writes them."""

import gguf
import torch
from tokenizers import pre_tokenizers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

F16, F32, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F16", "F32", "Q8_0"))
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|pad|>", *ALPHABET, "Ġ1", "he"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|endoftext|>{% endfor %}"


def permuted(weight, heads):
    """The rows as llama.cpp's converter orders them, for a rotation of neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write(path, model, kind=F32, family=None, tokenizer=False, extra=(), left_out=()):
    """A file as llama.cpp's converter writes it: names from its own table, vectors in float32; the path."""
    config = model.config
    family = family or config.model_type
    names = gguf.get_tensor_name_map(
        {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}.get(family, gguf.MODEL_ARCH.LLAMA),
        config.num_hidden_layers,
    )
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in extra:
        getattr(writer, f"add_{name}")(*value)
    if tokenizer:
        add_tokenizer(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        weight, module = parameter.detach(), name.split(".")[-2]
        if family in ("llama", "mistral") and module in heads:
            weight = permuted(weight, heads[module])
        if own not in left_out:
            add(writer, own, weight, kind if weight.ndim == 2 else F32)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        add(writer, "rope_freqs.weight", plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0], F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer, name, weight, kind):
    writer.add_tensor(name, gguf.quantize(weight.float().numpy(), kind), raw_dtype=kind)


def add_tokenizer(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["Ġ 1", "h e"])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)
