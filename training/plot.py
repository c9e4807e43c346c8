"""Draws a training's log: loss and held-out bits per byte over steps, as SVG."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw(log: Path, picture: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(8, 4.5))
    left = figure.subplots()
    right = left.twinx()
    for axis, key, colour in ((left, "loss", "tab:blue"), (right, "bits_per_byte", "tab:red")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), color=colour, marker="" if key == "loss" else "o")
        axis.tick_params(axis="y", labelcolor=colour)
    left.set_xlabel("step")
    left.set_ylabel("training loss, nat per token", color="tab:blue")
    right.set_ylabel("held-out bits per byte", color="tab:red")
    figure.savefig(picture, bbox_inches="tight")
