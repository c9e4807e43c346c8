"""Draws a training's log: the loss and held-out bits per byte over steps, as SVG, and the loss as text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

COLUMNS = 72
LINES = 12


def read(log: Path) -> list[dict[str, Any]]:
    """The log's lines; of steps that were done again after a cut, the later ones."""
    lines: list[dict[str, Any]] = []
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if lines and lines[-1]["step"] >= line["step"]:
            lines = [earlier for earlier in lines if _stays(earlier, line)]
        lines.append(line)
    return lines


def _stays(earlier: dict[str, Any], line: dict[str, Any]) -> bool:
    """A checkpoint's step has two lines, which say different things."""
    return bool(earlier["step"] < line["step"] or (earlier["step"] == line["step"] and earlier.keys() != line.keys()))


def points(lines: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if key in line]


def draw(log: Path, picture: Path) -> None:
    from matplotlib.figure import Figure

    lines = read(log)
    figure = Figure(figsize=(8, 4.5))
    left = figure.subplots()
    right = left.twinx()
    for axis, key, colour in ((left, "loss", "tab:blue"), (right, "bits_per_byte", "tab:red")):
        axis.plot(*zip(*points(lines, key), strict=True), color=colour, marker="" if key == "loss" else "o")
        axis.tick_params(axis="y", labelcolor=colour)
    left.set_xlabel("step")
    left.set_ylabel("training loss, nat per token", color="tab:blue")
    right.set_ylabel("held-out bits per byte", color="tab:red")
    figure.savefig(picture, bbox_inches="tight")


def text(curve: list[tuple[int, float]]) -> str:
    """A curve of (step, value) in `LINES` lines of text; a column's value is the mean of its steps."""
    last = curve[-1][0]
    columns: list[list[float]] = [[] for _ in range(COLUMNS)]
    for step, value in curve:
        columns[math.ceil(step * COLUMNS / last) - 1].append(value)
    means = [sum(column) / len(column) if column else None for column in columns]
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    per_line = (high - low) / (LINES - 1) or 1.0
    canvas = [[" "] * COLUMNS for _ in range(LINES)]
    for column, mean in enumerate(means):
        if mean is not None:
            canvas[round((high - mean) / per_line)][column] = "*"
    drawn = [f"{high - line * per_line:5.2f} |{''.join(marks).rstrip()}" for line, marks in enumerate(canvas)]
    return "\n".join([*drawn, "      +" + "-" * COLUMNS, f"       step 0{last:>{COLUMNS - 6},}"])
