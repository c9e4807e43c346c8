"""`make bench`: measures everything and writes docs/bench.md.

python -m bench [--rounds N] [--threads N] [--only engine|path|languages|books|kernels] [--cache DIR]
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from andthen.engine.llama import library
from bench import books, engine, languages, steps
from bench.cpu import machine
from bench.kernels import kernels
from bench.path import path

PAGE = Path("docs/bench.md")
PARTS = ("engine", "path", "languages", "books", "kernels")


def commit() -> str:
    """The one that is checked out, marked where what is measured differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def page(parts: tuple[str, ...], rounds: int, threads: int, cache: Path) -> Iterator[str]:
    yield "# Measured\n"
    yield "`make bench` wrote this page: one run on one machine, where ratios tell more than figures.\n"
    yield f"{machine()}. {library().build}. Commit {commit()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.\n"
    subjects = engine.subjects(cache, threads) if {"engine", "path"} & set(parts) else []
    if "engine" in parts:
        yield "## Tokens a second\n"
        yield str(engine.About(threads, rounds))
        yield engine.LEGEND
        for subject in subjects:
            yield from engine.measure(subject, rounds)
    if "path" in parts:
        yield "## The way through the server\n"
        yield "On the model that ships. A chunk is one token of one stream.\n"
        yield from path(subjects[0].setup, rounds)
    if "languages" in parts:
        yield "## The way through each vendor's language\n"
        yield languages.ABOUT
        yield from languages.languages(rounds)
        yield steps.ABOUT
        yield from steps.steps()
    if "books" in parts:
        yield "## The price of the books\n"
        yield books.ABOUT
        yield from books.books(rounds)
    if "kernels" in parts:
        yield "## Sampling\n"
        yield "Numpy's CPU time. The noise is drawn while `llama_decode` computes; the rest waits for its logits.\n"
        yield from kernels()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="that compute, for everybody (default: 1)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measures this part, and only prints it")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("andthen-bench"))
    options = parser.parse_args()
    lines = []
    for line in page(tuple(options.only or PARTS), options.rounds, options.threads, options.cache):
        print(line, flush=True)
        lines.append(line)
    if not options.only:
        PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
