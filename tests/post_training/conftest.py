"""Tokenizers of chats."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def newline_tokenizer() -> Any:
    """A chat tokenizer that, as Llama 3's and SmolLM3's, has one token for several new lines and for spaces before them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from post_training.chat_model import with_chat_tokens
    from post_training.template import read_template

    backend = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
    backend.train_from_iterator([f"a{' ' * (i % 3)}{chr(10) * (i % 4)}b.\n\n" for i in range(400)], trainer)
    base = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    return with_chat_tokens(base, read_template("hybrid"))[0]


@pytest.fixture(scope="session")
def tokenizer(chat_folder: Path) -> Any:
    from post_training.template import load_tokenizer

    return load_tokenizer(str(chat_folder), "hybrid")
