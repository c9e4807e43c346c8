"""Trains the byte-level BPE and encodes with it, by the tokenizers library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import Text
from training.rows import Decode, Encode
from training.vocabulary import CONTROL

LINES_PER_SAMPLE = 2
"""Every second paragraph is plenty to count pairs in."""


def train(texts: list[Text], vocab_size: int, path: Path) -> None:
    """Trains on `texts` and writes `tokenizer.json`. The same texts give the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(CONTROL), initial_alphabet=alphabet)
    lines = (line for text in texts for line in text.characters.splitlines(keepends=True)[::LINES_PER_SAMPLE])
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encoder(tokenizer: Tokenizer) -> Encode:
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def decoder(tokenizer: Tokenizer) -> Decode:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
