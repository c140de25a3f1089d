"""The embedded teacher: a small Llama that is worth linearizing, trained from a seed.

Three stages in one stream of sequences:

1. *repeats*: random tokens whose first part is repeated with a random period. Every token of a repeat is
   predictable by induction, so the circuit that copies from context forms within a few hundred steps
   (a fixed period would teach positions instead).
2. *tinyworld + pydocs*: stories with questions, and the Python documentation, half and half.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset, SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from liger_mini import corpus


def train_tokenizer(vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training halves of tinyworld and pydocs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stories = corpus.tinyworld(0, "train")
    texts = [next(stories).text for _ in range(1500)] + corpus.pydocs("train")
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=int(1e9),
    )
