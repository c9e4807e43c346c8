"""The vocabulary's layout: five control tokens, the 256 bytes, then merges of a byte-level BPE. Knows no model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

END = "<|endoftext|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"
CONTROL = (END, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD)
"""In the order of their ids, from 0. `END` begins and ends a document: it is BOS, EOS and EOT in one."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, spelt in the printable alphabet of byte-level BPE, and merges by rank."""

    tokens: list[str]
    merges: list[tuple[str, str]]


def read(path: Path) -> Vocabulary:
    """Reads the `tokenizer.json` of the tokenizers library."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if tuple(tokens[: len(CONTROL)]) != CONTROL:
        raise ValueError(f"{path}: the first tokens must be {', '.join(CONTROL)}")
    return Vocabulary(tokens, [(left, right) for left, right in model["merges"]])


def byte_alphabet() -> list[str]:
    """The printable letter that stands for each byte, by byte (GPT-2's `bytes_to_unicode`, openai/gpt-2 encoder.py)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = itertools.count(256)
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def of_pairs(size: int) -> Vocabulary:
    """A vocabulary of any size up to 65,797, untrained: after the bytes come pairs of bytes, plain ASCII first."""
    alphabet = byte_alphabet()
    room = size - len(CONTROL) - len(alphabet)
    if not 0 <= room <= len(alphabet) ** 2:
        raise ValueError(f"the vocabulary's size must be between 261 and 65,797, not {size}")
    merges = list(itertools.islice(_pairs(alphabet), room))
    return Vocabulary([*CONTROL, *alphabet, *(left + right for left, right in merges)], merges)


def _pairs(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    plain = alphabet[32:127]
    yield from itertools.product(plain, plain)
    for left, right in itertools.product(alphabet, alphabet):
        if left not in plain or right not in plain:
            yield left, right
