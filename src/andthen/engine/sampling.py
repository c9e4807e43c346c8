"""Which token comes next: logits → tokens and log-probabilities, a batch of rows at a time.

Pure: numpy and arithmetic; the randomness is a function of (seed, step, token), so that a token drawn alone and the
same token drawn among others are the same.

A token is drawn as argmax(logit + temperature · Gumbel noise), which is a draw from the softmax of logit / temperature
(the Gumbel-max trick; Gumbel 1954, Maddison et al. 2014, arXiv:1411.0030). Unlike inverse-CDF sampling, where every
probability moves every threshold, the small differences that a batch's other rows make in the logits change the
drawn token only where two candidates are that close.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from andthen.contract.request import CompletionRequest

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]

GREEDY_BELOW = 1e-5
"""Temperatures under this one are greedy: beside float32 logits their noise is nothing."""

_BLOCK_BYTES = 1 << 18
_LIKELY_NUCLEUS = 256
_MASK_64 = (1 << 64) - 1
_SHIFT = np.uint32(16)
_MULTIPLIER = np.uint32(0x9E3779BB)
_DROPPED_BITS = np.uint32(9)
_EXPONENT_OF_1 = np.uint32(0x3F800000)
_JUST_UNDER_1 = np.float32(1 - 2**-24)


class Sampler:
    """One candidate's way of choosing tokens, and what its choice depends on: the counts of its own text.

    Args:
        request: the parameters.
        seed: of this candidate, any int; taken modulo 2⁶⁴.
        vocab_size: length of a row of logits.
        end_tokens: the tokens that end a generation: banned by `ignore_eos` and until `min_tokens`.
        prompt: the prompt's tokens, which `repetition_penalty` counts (as vLLM and Hugging Face do).
    """

    def __init__(
        self,
        request: CompletionRequest,
        *,
        seed: int,
        vocab_size: int,
        end_tokens: Iterable[int],
        prompt: npt.NDArray[np.int32],
    ) -> None:
        self.seed = seed
        self.step = 0
        self.greedy = request.temperature < GREEDY_BELOW or request.top_p == 0.0 or request.top_k == 1
        self.temperature = 0.0 if self.greedy else request.temperature
        self.top_p = request.top_p
        self.top_k = request.top_k if 0 < request.top_k < vocab_size else 0
        self.min_p = request.min_p
        self.truncates = not self.greedy and (self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0)
        self._presence = request.presence_penalty
        self._frequency = request.frequency_penalty
        self._bias = request.logit_bias
        self._counts: dict[int, int] = {}
        self._shifts = bool(self._bias or self._presence or self._frequency)
        self._repetition = request.repetition_penalty
        self._prompt = prompt
        self._vocab_size = vocab_size
        self._banned_ends = _ids(end_tokens) if request.ignore_eos else None
        self._early_ends = _ids([*end_tokens, *request.stop_token_ids]) if request.min_tokens > 0 else None
        self._min_tokens = request.min_tokens

    @property
    def plain(self) -> bool:
        """Whether the raw logits are chosen from as they stand, but for bans and temperature."""
        return not self._shifts and self._repetition == 1.0

    @property
    def banned(self) -> npt.NDArray[np.int32] | None:
        """The tokens that can't come next."""
        if self._early_ends is not None and self.step < self._min_tokens:
            return self._early_ends
        return self._banned_ends

    @functools.cached_property
    def _shift(self) -> Floats:
        """What is added to each token's logit. Made when first needed: thousands of candidates may wait."""
        shift = np.zeros(self._vocab_size, np.float32)
        for token, bias in self._bias.items():
            shift[token] = bias
        return shift

    @functools.cached_property
    def _seen(self) -> npt.NDArray[np.bool_]:
        seen = np.zeros(self._vocab_size, np.bool_)
        seen[self._prompt] = True
        return seen

    def adjust(self, row: Floats) -> None:
        """Applies bias and penalties to one row of raw logits, in place.

        Presence and frequency as OpenAI defines them: logit −= count·frequency + (count > 0)·presence.
        """
        if self._repetition != 1.0:
            values = row[self._seen]
            row[self._seen] = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._shifts:
            row += self._shift

    def accept(self, token: int) -> None:
        """The token was chosen: counts it and goes on to the next step."""
        self.step += 1
        if self._presence or self._frequency:
            count = self._counts[token] = self._counts.get(token, 0) + 1
            self._shift[token] = self._bias.get(token, 0.0) - (count * self._frequency + self._presence)
        if self._repetition != 1.0:
            self._seen[token] = True


class Scores(Struct, frozen=True):
    """Raw log-probabilities of chosen tokens and their rivals, one entry a row."""

    chosen: Floats
    """(rows,)"""
    top_ids: npt.NDArray[np.int64]
    """(rows, k), most probable first."""
    top: Floats
    """(rows, k)"""


def choose(logits: Floats, samplers: Sequence[Sampler], noise: Floats) -> npt.NDArray[np.int64]:
    """The next token of each row.

    Args:
        logits: raw, (rows, vocabulary); not changed.
        samplers: one a row.
        noise: (rows, vocabulary) from `draw_noise` with the same samplers; overwritten.
    """
    bent = [index for index, sampler in enumerate(samplers) if not sampler.plain or sampler.truncates]
    if bent:
        rows = _bend(logits[bent], [samplers[index] for index in bent]) - noise[bent]
    np.subtract(logits, noise, out=noise)
    if bent:
        noise[bent] = rows
    for index, sampler in enumerate(samplers):
        if (banned := sampler.banned) is not None:
            noise[index, banned] = -np.inf
    tokens: npt.NDArray[np.int64] = noise.argmax(axis=1)
    return tokens


def _bend(rows: Floats, samplers: Sequence[Sampler]) -> Floats:
    """Rows of raw logits, in place with bias and penalties, and −inf for what bans and truncation exclude."""
    for row, sampler in zip(rows, samplers, strict=True):
        if not sampler.plain:
            sampler.adjust(row)
        if (banned := sampler.banned) is not None:
            row[banned] = -np.inf
    cut = [index for index, sampler in enumerate(samplers) if sampler.truncates]
    if cut:
        cutting = [samplers[index] for index in cut]
        tempered = rows[cut] / np.array([sampler.temperature for sampler in cutting], np.float32)[:, None]
        floor = truncation_floor(
            tempered,
            top_k=np.array([sampler.top_k for sampler in cutting]),
            top_p=np.array([sampler.top_p for sampler in cutting]),
            min_p=np.array([sampler.min_p for sampler in cutting]),
        )
        rows[cut] = np.where(tempered < floor[:, None], -np.inf, rows[cut])
    return rows


def truncation_floor(
    rows: Floats, *, top_k: npt.NDArray[np.int64], top_p: npt.NDArray[np.float64], min_p: npt.NDArray[np.float64]
) -> Floats:
    """The logit under which `min_p`, then `top_k`, then `top_p` exclude tokens, for each row of tempered logits.

    `top_p` keeps the smallest set of the most probable tokens whose probability, among those left, reaches it. Equal
    logits are kept or excluded together, so that no order among equals decides.

    Args:
        rows: (rows, vocabulary).
        top_k, top_p, min_p: (rows,); 0, 1 and 0 exclude nothing.
    """
    best = rows.max(axis=1)
    with np.errstate(divide="ignore"):
        floor: Floats = best + np.log(min_p).astype(np.float32)
    width = min(_LIKELY_NUCLEUS, rows.shape[1])  # sorting few is fast, and nearly always enough
    falling = np.sort(np.partition(rows, -width, axis=1)[:, -width:], axis=1)[:, ::-1]
    for row in np.flatnonzero(top_k):
        k = int(top_k[row])
        floor[row] = max(floor[row], falling[row, k - 1] if k <= width else np.partition(rows[row], -k)[-k])
    cut = top_p < 1.0
    if cut.any():
        wanted = top_p * _weights(rows, best, floor).sum(axis=1, dtype=np.float64)
        reached = _weights(falling, best, floor).cumsum(axis=1, dtype=np.float64) >= wanted[:, None]
        last = falling[np.arange(len(rows)), reached.argmax(axis=1)]
        for row in np.flatnonzero(cut & ~reached[:, -1]):
            every = np.sort(rows[row : row + 1])[:, ::-1]
            mass = _weights(every, best[row : row + 1], floor[row : row + 1]).cumsum(dtype=np.float64)
            last[row] = every[0, min(int(np.searchsorted(mass, wanted[row])), len(mass) - 1)]
        floor = np.where(cut, np.maximum(floor, last), floor)
    return floor


def _weights(rows: Floats, best: Floats, floor: Floats) -> Floats:
    """Probabilities relative to each row's best, zero under its floor."""
    weights: Floats = np.exp(rows - best[:, None])
    if (floor > -np.inf).any():
        weights[rows < floor[:, None]] = 0.0
    return weights


def score(logits: Floats, chosen: Sequence[int], depth: int) -> Scores:
    """Log-probabilities on the raw distribution: of the chosen token of each row, and of the `depth` most probable.

    Args:
        logits: raw, (rows, vocabulary).
        chosen: one token id a row.
        depth: 0 for the chosen tokens alone.
    """
    rows = np.arange(len(logits))
    best = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - best).sum(axis=1, dtype=np.float64)).astype(np.float32) + best[:, 0]
    picked = logits[rows, np.asarray(chosen)] - total
    if depth == 0:
        return Scores(picked, np.empty((len(logits), 0), np.int64), np.empty((len(logits), 0), np.float32))
    depth = min(depth, logits.shape[1])
    ids = np.argpartition(logits, -depth, axis=1)[:, -depth:]
    values = np.take_along_axis(logits, ids, axis=1) - total[:, None]
    order = np.lexsort((ids, -values), axis=1)
    return Scores(picked, np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1))


def draw_noise(samplers: Sequence[Sampler], out: Floats, scratch: Keys) -> None:
    """Each row's noise for its next token: temperature · ln(−ln u), the negative of Gumbel noise, zero where greedy.

    u is a function of the row's (seed, step) and the token: the token's hash times a key of the row, scrambled
    (multiply, xor-shift, multiply: Steele and Vigna 2022, arXiv:2001.05304). It is an odd multiple of 2⁻²⁴: exact in
    float32 and never 0 or 1, where the noise would be infinite and the token forced.

    Args:
        samplers: one a row.
        out: (rows, vocabulary), overwritten.
        scratch: the same shape.
    """
    tokens = _token_hashes(out.shape[1])
    keys = np.array([_row_key(sampler.seed, sampler.step) for sampler in samplers], np.uint64)
    low = keys.astype(np.uint32)[:, None]
    odd = (keys >> np.uint64(32)).astype(np.uint32)[:, None] | np.uint32(1)
    temperatures = np.array([sampler.temperature for sampler in samplers], np.float32)[:, None]
    block = max(1, _BLOCK_BYTES // (4 * out.shape[1]))
    for start in range(0, len(samplers), block):
        rows = slice(start, min(start + block, len(samplers)))
        bits, noise = scratch[rows], out[rows]
        np.bitwise_xor(tokens, low[rows], out=bits)
        np.multiply(bits, odd[rows], out=bits)
        np.bitwise_xor(bits, np.right_shift(bits, _SHIFT, out=noise.view(np.uint32)), out=bits)
        np.multiply(bits, _MULTIPLIER, out=bits)
        np.right_shift(bits, _DROPPED_BITS, out=bits)
        np.bitwise_or(bits, _EXPONENT_OF_1, out=bits)  # as float32: 1 + k·2⁻²³, with no conversion
        np.subtract(bits.view(np.float32), _JUST_UNDER_1, out=noise)
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
        np.log(noise, out=noise)
        np.multiply(noise, temperatures[rows], out=noise)


def _ids(tokens: Iterable[int]) -> npt.NDArray[np.int32]:
    return np.fromiter(tokens, np.int32)


@functools.lru_cache(maxsize=8)
def _token_hashes(vocab_size: int) -> Keys:
    return np.array([_mix(token) & 0xFFFFFFFF for token in range(vocab_size)], np.uint32)


def _row_key(seed: int, step: int) -> int:
    """64 bits of (seed, step): splitmix64's finalizer (Steele, Lea and Flood 2014) over each in turn."""
    return _mix(_mix(seed) ^ step)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
