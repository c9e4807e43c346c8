"""Muon: for matrices, an update whose directions all count alike, which small models learn much faster by than AdamW.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon): Nesterov
momentum, then a quintic Newton–Schulz iteration with his coefficients. The update's size is made to match AdamW's, so
that one learning rate and one weight decay serve both (Moonlight, arXiv:2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
ADAMW_RMS = 0.2


class Muon(Optimizer):
    """Muon over matrices; its state is one momentum a matrix. Decoupled weight decay."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, *, bfloat16: bool) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM), bfloat16=self._bfloat16)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * ADAMW_RMS * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor, *, bfloat16: bool = False) -> Tensor:
    """`matrix` with its singular values brought to about one (0.7 … 1.2)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16() if bfloat16 else wide.float()
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrix else x.T).to(matrix.dtype)
