"""What a training reports is measured as it says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from training import baselines, plot
from training.corpus import Text

ALPHABET = "abcdefgh"


def encode(text: str) -> list[int]:
    return [1 + ALPHABET.index(letter) for letter in text]


def noise(seed: int, length: int) -> Text:
    return Text.of("".join(np.random.default_rng(seed).choice(list(ALPHABET), length)))


def test_five_grams_know_a_text_that_repeats() -> None:
    assert baselines.five_grams([Text.of("abcdefgh" * 200)], Text.of("cdefghab" * 20), encode, 9) < 0.05


def test_five_grams_find_noise_as_hard_as_it_is() -> None:
    bits = baselines.five_grams([noise(1, 200_000)], noise(2, 2_000), encode, 9)
    assert math.log2(8) <= bits < 1.1 * math.log2(8)


def test_five_grams_share_a_probability_of_one_among_all_continuations() -> None:
    read = noise(1, 300)
    bits = [baselines.five_grams([read], Text.of("abc" + last), encode, 9) for last in ALPHABET]
    tokens, letters = 5, 4
    assert sum(2 ** -(one * letters / tokens) for one in bits) == pytest.approx(1, abs=0.01)


def test_a_vocabulary_whose_five_grams_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        baselines.five_grams([], Text.of("a"), encode, 8192)


def test_a_curve_is_drawn_from_its_highest_to_its_lowest_value() -> None:
    lines = plot.text([(step, 10.0 - step / 10) for step in range(1, 101)]).splitlines()
    assert lines[0].startswith(" 9.90 |*")
    assert lines[plot.LINES - 1].endswith("*")
    assert max(map(len, lines[: plot.LINES])) == plot.COLUMNS + 7
    assert lines[-1].endswith(" 100")


def test_steps_that_were_done_again_count_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        (1, "loss", 9),
        (1, "bits", 3),
        (2, "loss", 8),
        (3, "loss", 7),
        (2, "loss", 6),
        (2, "bits", 2),
        (2, "loss", 5),
    ]
    log.write_text("".join(f'{{"step": {step}, "{name}": {value}}}\n' for step, name, value in lines))
    read = plot.read(log)
    assert plot.points(read, "loss") == [(1, 9), (2, 5)]
    assert plot.points(read, "bits") == [(1, 3), (2, 2)]
