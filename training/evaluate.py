"""What a trained model is worth on held-out books: bits per byte, and how well it fills gaps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training import rows
from training.corpus import Text
from training.model import Llama
from training.vocabulary import CONTROL

WINDOWS_AT_ONCE = 8
GAPS = 200
GAP_CONTEXT_CHARACTERS = 800
SHORT_GAP_CHARACTERS = 60
MIDDLE_TOKENS_ALLOWED = 96
Words = frozenset[str]
READINGS = (
    "prefix and suffix",
    "the same, given that it does not end yet",
    "prefix and suffix in the other order",
    "prefix and another passage's suffix",
    "prefix and an empty suffix",
    "prefix alone, as plain text",
)
"""Ways to come to a middle. At each token of a gap the end is possible, which costs; in plain text it is not: hence the
second."""
Scores = list[Tensor]
"""Log-probabilities of a middle's tokens, by `READINGS`."""
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Suffix:
    """What the suffix is worth to the true middles of `gaps` gaps."""

    gaps: int
    nats_per_token: dict[str, float]
    """Mean log-probability of the middles' tokens by `READINGS`."""
    gain_per_gap: float
    """Of the first reading over the last, in nat for a whole middle."""
    gain_error: float
    """The standard error of `gain_per_gap`."""


@dataclass(frozen=True)
class Gaps:
    """How held-out gaps are filled."""

    every: Suffix
    short: Suffix
    """Middles of at most `SHORT_GAP_CHARACTERS`."""
    short_ended: int
    """Greedy middles of short gaps that ended by themselves within `MIDDLE_TOKENS_ALLOWED`."""
    short_whole_words: int
    """Those of them that, in their place, have whole words only: words of the training text, or of the passage."""
    bits_per_byte_plain: float
    bits_per_byte_cut: float
    """The same passages read as plain text, and cut, each with its suffix and prefix before its middle."""


@torch.inference_mode()
def bits_per_byte(model: Llama, text: Text, encode: rows.Encode, *, window: int, windows: int | None = None) -> float:
    """Bits per byte of the books in windows of `window` tokens, each begun afresh with BOS; every token counts.

    `windows`: only about that many, evenly spread.
    """
    model.eval()
    device = device_of(model)
    ids = [token for book in text.books() for token in encode(book)]
    starts = range(0, len(ids) - window + 1, window)
    if windows is not None:
        starts = starts[:: max(1, len(starts) // windows)]
    chosen = torch.tensor([ids[start : start + window] for start in starts])
    tokens = torch.cat((torch.full((len(chosen), 1), rows.END_ID), chosen[:, :-1]), 1)
    nats = 0.0
    for some, wanted in zip(tokens.split(WINDOWS_AT_ONCE), chosen.split(WINDOWS_AT_ONCE), strict=True):
        nats -= logprobs(model, some.to(device), wanted.to(device)).sum().item()
    tokens_per_byte = len(ids) / sum(map(len, text.books()))
    return float(nats / math.log(2) / chosen.numel() * tokens_per_byte)


def logprobs(model: Llama, tokens: Tensor, wanted: Tensor) -> Tensor:
    """Log-probability, in nat, of each wanted token after the tokens up to its place."""
    return model(tokens).float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]


@torch.inference_mode()
def gaps(
    model: Llama,
    text: Text,
    encode: rows.Encode,
    decode: rows.Decode,
    words: Words,
    *,
    seed: int,
    suffix_first: bool,
) -> Gaps:
    """Cuts `GAPS` held-out passages on word edges and has the model fill them; `words`: those of the training text."""
    model.eval()
    cuts = list(_cut_passages(text, GAPS, seed))
    scores: list[Scores] = []
    for (prefix, middle, suffix), (_, _, other) in zip(cuts, cuts[1:] + cuts[:1], strict=True):
        before = [
            rows.gap_prompt(prefix, suffix, encode, suffix_first=suffix_first),
            rows.gap_prompt(prefix, suffix, encode, suffix_first=not suffix_first),
            rows.gap_prompt(prefix, other, encode, suffix_first=suffix_first),
            rows.gap_prompt(prefix, "", encode, suffix_first=suffix_first),
            [rows.END_ID, *encode(prefix)],
        ]
        right, *others = [_logprobs(model, ids, encode(middle)) for ids in before]
        scores.append([right[0], right[0] - torch.log1p(-right[1].exp()), *(score for score, _ in others)])
    short = [number for number, (_, middle, _) in enumerate(cuts) if len(middle) <= SHORT_GAP_CHARACTERS]
    ended = whole = 0
    for prefix, middle, suffix in (cuts[number] for number in short):
        prompt = rows.gap_prompt(prefix, suffix, encode, suffix_first=suffix_first)
        made = greedy(model, prompt, MIDDLE_TOKENS_ALLOWED)
        if made[-1] == rows.END_ID:
            ended += 1
            known = words.union(WORD.findall(prefix + middle + suffix))
            whole += whole_words(prefix, decode(made[:-1]), suffix, known)
    plain, cut = _passage_bits(model, cuts, encode, suffix_first=suffix_first)
    return Gaps(_suffix(scores), _suffix([scores[number] for number in short]), ended, whole, plain, cut)


def whole_words(prefix: str, middle: str, suffix: str, words: Words) -> bool:
    """Whether every word that the middle makes or touches is one of `words`."""
    start, end = len(prefix), len(prefix) + len(middle)
    touched = [word for word in WORD.finditer(prefix + middle + suffix) if word.end() >= start and word.start() <= end]
    return all(word.group() in words for word in touched)


@torch.inference_mode()
def greedy(model: Llama, prompt: list[int], most: int) -> list[int]:
    """The likeliest continuation, token by token, to END or `most` tokens."""
    device = device_of(model)
    made: list[int] = []
    while len(made) < most and (not made or made[-1] != rows.END_ID):
        made.append(int(model(torch.tensor([prompt + made], device=device))[0, -1].argmax()))
    return made


def _cut_passages(text: Text, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        passage, _ = text.passage(int(rng.integers(len(text.paragraphs))), GAP_CONTEXT_CHARACTERS)
        yield rows.cut(passage, rng, word_share=1.0)


def _suffix(scores: list[Scores]) -> Suffix:
    gains = [float(score[0].sum() - score[-1].sum()) for score in scores]
    means = [float(torch.cat(kind).mean()) for kind in zip(*scores, strict=True)]
    error = float(np.std(gains, ddof=1) / len(gains) ** 0.5)
    return Suffix(len(gains), dict(zip(READINGS, means, strict=True)), float(np.mean(gains)), error)


def _passage_bits(
    model: Llama, cuts: list[tuple[str, str, str]], encode: rows.Encode, *, suffix_first: bool
) -> tuple[float, float]:
    """Bits per byte of the cuts' passages as plain text and as gap documents; the control tokens are not counted."""
    nats = [0.0, 0.0]
    for prefix, middle, suffix in cuts:
        documents = (
            rows.passage_document(prefix + middle + suffix, False, encode),
            rows.gap_document(prefix, middle, suffix, encode, suffix_first=suffix_first),
        )
        for kind, document in enumerate(documents):
            tokens = torch.from_numpy(document.tokens)[None]
            counted = tokens[0, 1:] >= len(CONTROL)
            scores = logprobs(model, *(ids.to(device_of(model)) for ids in (tokens[:, :-1], tokens[:, 1:])))
            nats[kind] -= float(scores[0].cpu()[counted].sum())
    letters = sum(len("".join(cut)) for cut in cuts)
    return nats[0] / math.log(2) / letters, nats[1] / math.log(2) / letters


def _logprobs(model: Llama, before: list[int], middle: list[int]) -> tuple[Tensor, Tensor]:
    """Of each token of the middle, and of END in its place."""
    sequence = torch.tensor([before + middle], device=device_of(model))
    every = model(sequence[:, :-1])[0, len(before) - 1 :].float().log_softmax(-1).cpu()
    return every.gather(-1, torch.tensor(middle)[:, None])[:, 0], every[:, rows.END_ID]


def device_of(model: Llama) -> torch.device:
    device: torch.device = model.token_embd.weight.device
    return device
