"""What a trained model is worth on held-out books: bits per byte, and how well it fills gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training import rows
from training.corpus import Text
from training.model import Llama

WINDOWS_AT_ONCE = 8
GAP_CONTEXT_CHARACTERS = 800
SHORT_GAP_CHARACTERS = 60
MIDDLE_TOKENS_ALLOWED = 96


@dataclass(frozen=True)
class Gaps:
    """How held-out gaps are filled; log-probabilities are means in nat per token of the true middle."""

    count: int
    logprob_with_suffix: float
    logprob_without_suffix: float
    short: int
    short_ended: int
    """Greedy middles of short gaps that ended by themselves within `MIDDLE_TOKENS_ALLOWED`."""


@torch.inference_mode()
def bits_per_byte(model: Llama, text: Text, encode: rows.Encode, *, window: int, windows: int | None = None) -> float:
    """Bits per byte of the books in windows of `window` tokens, each begun afresh with BOS; every token counts.

    `windows`: only about that many, evenly spread.
    """
    model.eval()
    device = model.token_embd.weight.device
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
def gaps(model: Llama, text: Text, encode: rows.Encode, *, count: int, seed: int) -> Gaps:
    """Cuts `count` held-out passages on word edges and has the model fill them."""
    model.eval()
    with_suffix, without_suffix, ended = [], [], []
    for prefix, middle, suffix in _cut_passages(text, count, seed):
        before = [rows.END_ID, rows.PREFIX_ID, *encode(prefix), rows.SUFFIX_ID, *encode(suffix), rows.MIDDLE_ID]
        with_suffix.append(_mean_logprob(model, before, encode(middle)))
        without_suffix.append(_mean_logprob(model, [rows.END_ID, *encode(prefix)], encode(middle)))
        if len(middle) <= SHORT_GAP_CHARACTERS:
            ended.append(rows.END_ID in greedy(model, before, MIDDLE_TOKENS_ALLOWED))
    return Gaps(count, float(np.mean(with_suffix)), float(np.mean(without_suffix)), len(ended), sum(ended))


@torch.inference_mode()
def greedy(model: Llama, prompt: list[int], most: int) -> list[int]:
    """The likeliest continuation, token by token, to END or `most` tokens."""
    device = model.token_embd.weight.device
    made: list[int] = []
    while len(made) < most and (not made or made[-1] != rows.END_ID):
        made.append(int(model(torch.tensor([prompt + made], device=device))[0, -1].argmax()))
    return made


def _cut_passages(text: Text, count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        passage, _ = text.passage(int(rng.integers(len(text.paragraphs))), GAP_CONTEXT_CHARACTERS)
        yield rows.cut(passage, rng, word_share=1.0)


def _mean_logprob(model: Llama, before: list[int], middle: list[int]) -> float:
    device = model.token_embd.weight.device
    sequence = torch.tensor([before + middle], device=device)
    return float(logprobs(model, sequence[:, :-1], sequence[:, 1:])[0, len(before) - 1 :].mean())
