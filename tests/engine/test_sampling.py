"""Sampling against plain, slow arithmetic, and its randomness against statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.request import CompletionRequest
from andthen.engine.sampling import Sampler, choose, draw_noise, score, truncation_floor

VOCAB = 64
NONE = np.array([], np.int32)


def sampler(*, seed: int = 0, end_tokens: tuple[int, ...] = (), prompt: np.ndarray = NONE, **fields: Any) -> Sampler:
    request = CompletionRequest(model="local/x", prompts=("",), **fields)
    return Sampler(request, seed=seed, vocab_size=VOCAB, end_tokens=end_tokens, prompt=prompt)


def draw(logits: np.ndarray, *samplers: Sampler) -> list[int]:
    noise = np.empty((len(samplers), logits.shape[1]), np.float32)
    draw_noise(samplers, noise, np.empty(noise.shape, np.uint32))
    return [int(token) for token in choose(logits, samplers, noise)]


def logits(seed: int = 1, rows: int = 1, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, VOCAB)) * spread).astype(np.float32)


def frequencies(row: np.ndarray, draws: int = 20_000, **fields: Any) -> np.ndarray:
    one = sampler(seed=9, **fields)
    counts = np.zeros(row.shape[1])
    for step in range(draws):
        one.step = step
        counts[draw(row, one)[0]] += 1
    return counts / draws


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return np.asarray(weights / weights.sum())


def chi_square(found: np.ndarray, wanted: np.ndarray, draws: int = 20_000) -> float:
    """Pearson's statistic over its degrees of freedom; about 1 where the draws follow the distribution."""
    likely = wanted * draws >= 5
    statistic = (((found - wanted) ** 2)[likely] / wanted[likely]).sum() * draws
    return float(statistic / max(1, likely.sum() - 1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_tempered_distribution(temperature: float) -> None:
    row = logits()
    wanted = softmax(row[0].astype(np.float64) / temperature)
    assert chi_square(frequencies(row, temperature=temperature), wanted) < 1.6


def test_draws_follow_the_nucleus() -> None:
    row = logits()
    wanted = softmax(row[0].astype(np.float64))
    order = np.argsort(-wanted)
    kept = order[: int(np.searchsorted(np.cumsum(wanted[order]), 0.7)) + 1]
    inside = np.zeros(VOCAB)
    inside[kept] = wanted[kept] / wanted[kept].sum()
    found = frequencies(row, top_p=0.7)
    assert found[np.setdiff1d(np.arange(VOCAB), kept)].sum() == 0
    assert chi_square(found, inside) < 1.6


def test_one_seed_draws_alike_alone_and_among_others() -> None:
    rows = logits(rows=32)
    alone = [draw(rows[index : index + 1], sampler(seed=index))[0] for index in range(32)]
    assert draw(rows, *(sampler(seed=index) for index in range(32))) == alone


def test_seeds_and_steps_draw_independently() -> None:
    row = np.zeros((1, VOCAB), np.float32)
    tokens = np.array([[draw(row, at)[0] for at in stepped(seed, 40)] for seed in range(40)])
    pairs = np.zeros((VOCAB, VOCAB))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    assert pairs.max() <= 5  # 1,560 pairs over 4,096 kinds
    assert len(np.unique(tokens, axis=0)) == 40
    assert len(np.unique(tokens.T, axis=0)) == 40


def stepped(seed: int, steps: int) -> list[Sampler]:
    made = []
    for step in range(steps):
        one = sampler(seed=seed)
        one.step = step
        made.append(one)
    return made


@given(st.integers(-(2**63), 2**63 - 1))
def test_seeds_count_modulo_two_to_the_64(seed: int) -> None:
    row = logits()
    assert draw(row, sampler(seed=seed)) == draw(row, sampler(seed=seed + 2**64))


def test_noise_is_standard_gumbel_and_finite() -> None:
    samplers = stepped(3, 400)
    noise = np.empty((400, 5000), np.float32)
    draw_noise(samplers, noise, np.empty(noise.shape, np.uint32))
    gumbel = np.sort(-noise.ravel().astype(np.float64))
    assert np.isfinite(gumbel).all()
    distance = np.abs(np.exp(-np.exp(-gumbel)) - (np.arange(gumbel.size) + 0.5) / gumbel.size).max()
    assert distance < 1.63 / np.sqrt(gumbel.size)  # Kolmogorov and Smirnov at one in a hundred
    rows, columns = noise - noise.mean(), (noise - noise.mean()).T
    for values in (rows, columns):
        neighbours = (values[:-1] * values[1:]).mean() / values.var()
        assert abs(neighbours) < 4 / np.sqrt(values.size)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"temperature": 1e-7}, {"top_p": 0.0}, {"top_k": 1}])
def test_greedy_is_the_best_token(fields: dict[str, Any]) -> None:
    row = logits()
    assert all(draw(row, sampler(seed=seed, **fields)) == [int(row[0].argmax())] for seed in range(20))


def test_penalties_count_generated_text_as_defined() -> None:
    row = logits()
    one = sampler(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.3, logit_bias={5: 1.5})
    for token in (5, 5, 8):
        one.accept(token)
    wanted = row[0].copy()
    wanted[5] += 1.5 - (2 * 0.3 + 0.7)
    wanted[8] -= 0.3 + 0.7
    found = row[0].copy()
    one.adjust(found)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_repetition_penalty_counts_prompt_and_text() -> None:
    row = logits()
    one = sampler(repetition_penalty=2.0, prompt=np.array([3], np.int32))
    one.accept(4)
    found = row[0].copy()
    one.adjust(found)
    for token in (3, 4):
        assert found[token] == pytest.approx(row[0, token] / 2 if row[0, token] > 0 else row[0, token] * 2)
    assert (np.delete(found, [3, 4]) == np.delete(row[0], [3, 4])).all()


def test_end_tokens_are_banned_for_good_or_for_a_while() -> None:
    row = np.full((1, VOCAB), -50, np.float32)
    row[0, 7] = 50
    assert draw(row, sampler(end_tokens=(7,))) == [7]
    assert draw(row, sampler(end_tokens=(7,), ignore_eos=True)) != [7]
    one = sampler(end_tokens=(7,), min_tokens=2, stop_token_ids=(8,))
    drawn = []
    for _ in range(4):
        drawn += draw(row, one)
        one.accept(drawn[-1])
    assert 7 not in drawn[:2]
    assert 8 not in drawn[:2]
    assert drawn[2:] == [7, 7]


@given(st.integers(0, 10_000), st.integers(0, 70), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_truncation_keeps_what_the_slow_way_keeps(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    row = logits(seed)[0]
    kept_k = top_k if top_k < VOCAB else 0
    alive = survivors(row, kept_k, top_p, min_p)
    # Beside other rows it is the same.
    rows = np.stack([logits(seed + 1)[0], row])
    floor = truncation_floor(
        rows, top_k=np.array([3, kept_k]), top_p=np.array([0.5, top_p]), min_p=np.array([0, min_p])
    )
    assert set(np.flatnonzero(row >= floor[1]).tolist()) == alive
    left = {token for token in range(VOCAB) if np.exp(row[token] - row.max(), dtype=np.float64) >= min_p * 0.999999}
    order = sorted(left, key=lambda token: -row[token])
    if 0 < top_k < VOCAB:
        order = order[:top_k]
    total = sum(float(np.exp(row[token])) for token in order)
    mass, kept = 0.0, set()
    for token in order:
        if mass >= top_p * total * (1 + 1e-5):
            break
        kept.add(token)
        mass += float(np.exp(row[token]))
    assert alive
    assert int(row.argmax()) in alive
    assert alive <= kept
    assert len(kept - alive) <= 1  # where the border falls on a rounding


def survivors(row: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    floor = truncation_floor(
        row[None], top_k=np.array([top_k]), top_p=np.array([top_p]), min_p=np.array([min_p], np.float64)
    )
    return set(np.flatnonzero(row >= floor[0]).tolist())


def test_a_wide_nucleus_is_found_beyond_the_likely_few() -> None:
    row = np.random.default_rng(2).standard_normal(4000).astype(np.float32) * np.float32(0.1)
    weights = np.sort(softmax(row.astype(np.float64)))[::-1]
    wanted = int(np.searchsorted(np.cumsum(weights), 0.9)) + 1
    assert len(survivors(row, 0, 0.9, 0.0)) == pytest.approx(wanted, abs=2)
    assert len(survivors(row, 3000, 1.0, 0.0)) == 3000


@given(st.integers(0, 10_000), st.integers(0, 5))
def test_scores_are_raw_log_probabilities(seed: int, depth: int) -> None:
    rows = logits(seed, rows=3)
    chosen = [1, 2, 3]
    found = score(rows, chosen, depth)
    wanted = rows.astype(np.float64) - np.log(np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.chosen, wanted[np.arange(3), chosen], atol=1e-5)
    assert found.top_ids.tolist() == np.argsort(-wanted, axis=1, kind="stable")[:, :depth].tolist()
    np.testing.assert_allclose(found.top, np.take_along_axis(wanted, found.top_ids, axis=1), atol=1e-5)
    for row in range(3):
        if chosen[row] in found.top_ids[row]:
            place = found.top_ids[row].tolist().index(chosen[row])
            assert found.top[row, place] == found.chosen[row], "bit-same: lm-eval compares for equality"


def test_choosing_leaves_the_logits_as_they_were() -> None:
    rows = logits(rows=2)
    before = rows.copy()
    draw(rows, sampler(presence_penalty=1.0, top_p=0.5), sampler(temperature=0.5))
    assert (rows == before).all()
