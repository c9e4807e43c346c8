"""In which precision a device multiplies."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

ROUNDS = 40
"""Each of both in turn, so that what else the machine does falls on both alike."""
GAIN = 1.2
"""How much faster bfloat16 must be: less is lost again where values are brought from one precision to the other."""


def decided(device: str, out: Path) -> bool:
    """Whether a training in `out` computes in bfloat16: settled when it begins, so that all its pieces do."""
    kept = out / "precision.txt"
    if not kept.exists():
        kept.write_text("bfloat16" if bfloat16_pays(device) else "float32")
    return kept.read_text() == "bfloat16"


def bfloat16_pays(device: str) -> bool:
    """Whether the device multiplies faster in bfloat16. A CPU is asked by a trial: with AMX it is several times faster,
    with nothing but AVX-512's instructions slower by half, without those ten times slower, and none tells which."""
    if device != "cpu":
        return True
    left, right = torch.ones(2048, 256), torch.ones(256, 1024)
    rounds = [(_took_s(left, right), _took_s(left.bfloat16(), right.bfloat16())) for _ in range(ROUNDS)]
    return min(full_s for full_s, _ in rounds) > GAIN * min(half_s for _, half_s in rounds)


def _took_s(left: Tensor, right: Tensor) -> float:
    started_s = time.perf_counter()
    left @ right
    return time.perf_counter() - started_s
