"""The engine against the plain slow loop over the same library, and against itself under load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andthen.contract.request import CompletionRequest
from andthen.engine.settings import EngineSettings, ModelSettings
from tests.engine.asking import MODEL, SHIPPED, Asker, Plain, asking, request

WORDS = (
    "once upon a time there was little old king who had three sons and the youngest said I will go into wood "
    "where no man ever came back alive but she only laughed because it rained all day"
).split()


def prompts(count: int) -> list[str]:
    pick = np.random.default_rng(11)
    return [" ".join(pick.choice(WORDS, int(pick.integers(1, 60)))) for _ in range(count)]


def test_prompt_logprobs_are_those_of_one_token_at_a_time(asker: Asker, plain: Plain) -> None:
    worst = 0.0
    for prompt in prompts(50):
        tokens = plain.tokens(prompt)
        (scored,) = asker.ask(prompt, echo=True, logprobs=1, max_tokens=0).prompts.values()
        assert [token.id for token in scored.tokens] == tokens[1:]
        assert scored.tokens[0].logprob is None
        found = [token.logprob for token in scored.tokens[1:]]
        wanted = plain.prompt_logprobs(tokens)[1:]  # the caller's first token has no value, though a BOS precedes it
        worst = max([worst, *np.abs(np.subtract(found, wanted))])  # type: ignore[arg-type]
    assert worst < 0.05


def test_greedy_text_is_that_of_one_token_at_a_time(asker: Asker, plain: Plain) -> None:
    asked = [request(prompt, temperature=0.0, max_tokens=40) for prompt in prompts(20)]
    for one, reply in zip(asked, asker.together(asked), strict=True):
        drawn, gaps = plain.draw(plain.tokens(str(one.prompts[0])), one)
        assert_same_text(reply.text, plain.text(drawn), gaps)


def test_seeded_text_is_that_of_one_token_at_a_time(asker: Asker, plain: Plain) -> None:
    asked = [request(prompt, temperature=0.8, seed=5, max_tokens=30) for prompt in prompts(20)]
    for one, reply in zip(asked, asker.together(asked), strict=True):
        drawn, gaps = plain.draw(plain.tokens(str(one.prompts[0])), one, seed=5)
        assert_same_text(reply.text, plain.text(drawn), gaps)


def assert_same_text(found: str, wanted: str, gaps: list[float]) -> None:
    """Texts may part only where the two best choices are so near that another order of sums decides."""
    assert found == wanted or min(gaps) < 0.01


SEEDS = st.integers(-(2**63), 2**63 - 1)
REQUESTS = st.builds(
    request,
    st.sampled_from([*prompts(6), "", (5, 6, 7), "é", "<|fim_prefix|>a"]),
    seed=SEEDS,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    max_tokens=st.integers(0, 12),
    n=st.integers(1, 3),
    logprobs=st.sampled_from([None, 0, 2]),
    echo=st.booleans(),
    stream=st.booleans(),
    stop=st.sampled_from([(), (" ",), ("e", "th")]),
    top_p=st.sampled_from([1.0, 0.9]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
)


def texts(asker: Asker, asked: list[CompletionRequest]) -> list[list[str]]:
    return [reply.texts for reply in asker.together(asked)]


@settings(max_examples=25)
@given(st.lists(REQUESTS, min_size=2, max_size=8))
def test_any_batch_gives_each_request_the_text_it_gets_alone(asker: Asker, asked: list[CompletionRequest]) -> None:
    together = texts(asker, asked)
    alone = [texts(asker, [one])[0] for one in asked]
    assert together == alone


@pytest.mark.parametrize("stream", [False, True])
def test_a_seed_draws_alike_alone_and_among_31_others(asker: Asker, stream: bool) -> None:
    asked = [request(prompt, seed=seed, max_tokens=40, stream=stream) for seed, prompt in enumerate(prompts(32))]
    alone = [texts(asker, [one])[0] for one in asked]
    assert texts(asker, asked) == alone
    assert texts(asker, asked[::-1]) == alone[::-1]


def test_candidates_draw_as_single_requests_with_the_next_seeds(asker: Asker) -> None:
    single = [asker.ask(seed=7 + number, max_tokens=12).text for number in range(4)]
    assert asker.ask(seed=7, n=4, max_tokens=12).texts == single
    assert asker.ask(("x", "Once upon a time"), seed=7, n=4, max_tokens=12, stream=True).texts[4:] == single
    last = 2**63 - 1
    assert asker.ask(seed=last, n=2, max_tokens=5).texts[1] == asker.ask(seed=-(2**63), max_tokens=5).text


def test_best_of_keeps_the_most_probable(asker: Asker) -> None:
    every = asker.ask(seed=3, n=6, logprobs=0, max_tokens=10)
    means = [float(np.mean([token.logprob for token in said.tokens])) for _, said in sorted(every.said.items())]
    order = sorted(range(6), key=lambda number: -means[number])
    best = asker.ask(seed=3, n=2, best_of=6, max_tokens=10)
    assert best.texts == [every.texts[number] for number in order[:2]]
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert best.usage.prompt_tokens == every.usage.prompt_tokens


@pytest.mark.parametrize(
    "layout",
    [{"cells": 4096}, {}, {"deterministic": True}],
    ids=["shared pool", "streams", "streams, exact"],
)
def test_every_layout_of_the_pool_says_the_same(plain: Plain, layout: dict[str, Any]) -> None:
    models = {MODEL: ModelSettings(path=str(SHIPPED), **layout)}
    asked = [request(prompt, temperature=0.7, seed=seed, max_tokens=30) for seed, prompt in enumerate(prompts(16))]
    with asking(EngineSettings(models=models)) as asker:
        for _ in range(2):  # the second time with cached prefixes
            for one, reply in zip(asked, asker.together(asked), strict=True):
                drawn, gaps = plain.draw(plain.tokens(str(one.prompts[0])), one, seed=one.seed or 0)
                assert_same_text(reply.text, plain.text(drawn), gaps)


def test_log_probabilities_have_equal_bits_alone_and_among_others(asker: Asker) -> None:
    asked = [request(prompt, seed=seed, max_tokens=12, logprobs=0) for seed, prompt in enumerate(prompts(16))]
    alone = [asker.ask(*one.prompts, seed=one.seed, max_tokens=12, logprobs=0).only.tokens for one in asked]
    assert [reply.only.tokens for reply in asker.together(asked)] == alone
