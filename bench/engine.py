"""Tokens a second of the engine and of its peers, in one run: all contenders take turns, load by load."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

import andthen.engine
from bench.contenders import Measured, everybody
from bench.load import NEW_TOKENS, PROMPT_TOKENS, TEMPERATURE, Load, Setup
from training import random_model

CLIENTS = (1, 8, 32)
_SHIPPED = Path(andthen.engine.__file__).parent / "house" / "tale.gguf"
_WARM_SEED = 10**6


class Subject(NamedTuple):
    """A model that is measured, and how long a run has to be."""

    title: str
    setup: Setup
    requests: dict[int, int]
    """Requests of each client in a run, by the number of clients."""


class Ratio(NamedTuple):
    """What is to be how many times as fast as what."""

    ours: str
    theirs: str


_RATIOS = (
    Ratio("engine", "bare loop"),
    Ratio("engine", "bare loop in streams"),
    Ratio("engine", "llama-server, in process"),
    Ratio("server, whole replies", "llama-server, whole replies"),
    Ratio("server, streams", "llama-server, streams"),
)

Rounds = dict[tuple[str, int], list[Measured]]
"""By contender and number of clients, the runs in the order of the rounds."""


def subjects(cache: Path, threads: int) -> list[Subject]:
    """The model that ships, and one of random weights that is made in `cache` if it is not there."""
    large = cache / "random-134m.gguf"
    if not large.exists():
        cache.mkdir(parents=True, exist_ok=True)
        making = large.with_suffix(".part")
        random_model.write(making)
        making.rename(large)
    return [
        Subject("The model that ships", Setup(str(_SHIPPED), True, threads), {1: 16, 8: 8, 32: 4}),
        Subject("134M parameters, Q8_0, random", Setup(str(large), False, threads), {1: 1, 8: 1, 32: 1}),
    ]


def measure(subject: Subject, rounds: int) -> Iterator[str]:
    """Measures, and gives the subject's part of the page."""
    known = subject.setup.known()
    seeds = iter(range(_WARM_SEED))
    found: Rounds = {}
    with everybody(subject.setup) as field:
        for name in field.contenders:
            field.measure(name, Load(1, 1, _WARM_SEED, known.vocabulary.vocab_size))
        for _ in range(rounds):
            for clients in CLIENTS:
                for name in field.contenders:
                    load = Load(clients, subject.requests[clients], next(seeds), known.vocabulary.vocab_size)
                    found.setdefault((name, clients), []).append(field.measure(name, load))
        names = list(field.contenders)
    info = known.info
    yield f"### {subject.title}\n"
    yield f"{info.parameters:,} parameters, vocabulary of {info.vocab_size:,}, {info.size_bytes / 1e6:.1f} MB.\n"
    yield from _speeds(names, found)
    yield from _ratios(names, found)


def _speeds(names: list[str], found: Rounds) -> Iterator[str]:
    yield "| tokens/s · tokens per CPU second | " + " | ".join(map(_sequences, CLIENTS)) + " |"
    yield "|---|" + "---|" * len(CLIENTS)
    for name in names:
        cells = []
        for clients in CLIENTS:
            runs = found[name, clients]
            wall = statistics.median(run.tokens_per_s for run in runs)
            cpu = statistics.median(run.tokens_per_cpu_s for run in runs)
            cells.append(f"{wall:,.0f} · {cpu:,.0f}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def _ratios(names: list[str], found: Rounds) -> Iterator[str]:
    yield "| ratio of tokens/s · per CPU second | " + " | ".join(map(_sequences, CLIENTS)) + " |"
    yield "|---|" + "---|" * len(CLIENTS)
    for ours, theirs in _RATIOS:
        if theirs not in names:
            continue
        cells = []
        for clients in CLIENTS:
            pairs = list(zip(found[ours, clients], found[theirs, clients], strict=True))
            wall = statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)
            cpu = statistics.median(a.tokens_per_cpu_s / b.tokens_per_cpu_s for a, b in pairs)
            cells.append(f"{wall:.2f} · {cpu:.2f}")
        yield f"| {ours} / {theirs} | " + " | ".join(cells) + " |"
    yield ""


def _sequences(clients: int) -> str:
    return f"{clients} sequence{'s' * (clients > 1)}"


class About(Struct, frozen=True):
    """What the figures stand for, in words."""

    threads: int
    rounds: int

    def __str__(self) -> str:
        return (
            f"Prompts of {PROMPT_TOKENS} token ids that nobody sent before, {NEW_TOKENS} new tokens each, temperature "
            f"{TEMPERATURE} over the whole vocabulary, end tokens banned; {self.threads} computing "
            f"thread{'s' * (self.threads > 1)} and flash attention for everybody. Medians of {self.rounds} rounds in "
            "which all take turns; a ratio is the median of the rounds' ratios. CPU seconds are those of all the "
            "contender's processes, without the HTTP clients'.\n"
        )


LEGEND = """\
- **bare loop**: `llama_decode` in whole batches over one shared pool of cells, and nothing else: no sampling.
- **bare loop in streams**: the same with the layout that the engine uses: cells of its own for each sequence, and for
  a deterministic model no row computed alone.
- **engine**: our engine's loop, in the measuring process, giving out each token as it comes.
- **server**: `andthen serve` with all that is on by default, over HTTP on loopback.
- **llama-server**: that of the same wheel (`xllamacpp.Server`), with as many slots, its prompt cache off and
  temperature as its only sampler.
"""
