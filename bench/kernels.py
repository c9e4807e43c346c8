"""What the parts of sampling cost a step of 32 rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from andthen.contract.request import CompletionRequest
from andthen.engine.sampling import Sampler, choose, draw_noise, score
from bench.cpu import time_us
from bench.load import SLOTS, TEMPERATURE

_VOCABULARIES = (4096, 32_768)
_END = 2

_WAYS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "ignore_eos": {"ignore_eos": True},
    "logit_bias, frequency_penalty": {"logit_bias": {300: 1.0}, "frequency_penalty": 0.5},
    "top_k = 40": {"top_k": 40},
    "top_p = 0.9": {"top_p": 0.9},
}


def kernels() -> Iterator[str]:
    """The table."""
    yield f"| µs of a step of {SLOTS} rows | " + " | ".join(f"vocabulary of {size:,}" for size in _VOCABULARIES) + " |"
    yield "|---|" + "---|" * len(_VOCABULARIES)
    columns = [_measure(size) for size in _VOCABULARIES]
    for name in columns[0]:
        yield f"| {name} | " + " | ".join(f"{column[name]:,.0f}" for column in columns) + " |"
    yield ""


def _measure(vocab_size: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((SLOTS, vocab_size), np.float32)
    noise = np.zeros_like(logits)
    scratch = np.zeros(logits.shape, np.uint32)
    drawn = rng.integers(0, vocab_size, SLOTS).tolist()
    plain = _samplers(vocab_size, {})
    found = {"noise": time_us(lambda: draw_noise(plain, noise, scratch))}
    for name, fields in _WAYS.items():
        samplers = _samplers(vocab_size, fields)

        def draw(samplers: list[Sampler] = samplers) -> None:
            noise.fill(0)  # choosing leaves the sums in it
            choose(logits, samplers, noise)

        found[f"choose: {name}"] = time_us(draw)
    for depth in (0, 5):
        found[f"logprobs = {depth}"] = time_us(lambda depth=depth: score(logits, drawn, depth))  # type: ignore[misc]
    return found


def _samplers(vocab_size: int, fields: dict[str, Any]) -> list[Sampler]:
    request = CompletionRequest(model="local/bench", prompts=((1,),), temperature=TEMPERATURE, **fields)
    prompt = np.array([1], np.int32)
    return [
        Sampler(request, seed=seed, vocab_size=vocab_size, end_tokens=[_END], prompt=prompt) for seed in range(SLOTS)
    ]
