"""The llama architecture in PyTorch, as llama.cpp computes it; every parameter bears its GGUF name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.recipe import Shape
from training.rows import NO_TARGET

UNSEEN = -1e4
"""Added to a score, leaves none of its weight: exp(−10⁴) is 0 in every precision. Faster on a CPU than −∞."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions on neighbouring pairs (2i, 2i + 1), llama.cpp's own layout for
    this architecture: so nothing is permuted at export."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attn_q = nn.Linear(shape.dim, shape.dim, bias=False)
        self.attn_k = nn.Linear(shape.dim, shape.kv_dim, bias=False)
        self.attn_v = nn.Linear(shape.dim, shape.kv_dim, bias=False)
        self.attn_output = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, bias: Tensor) -> Tensor:
        query = rotate(self._heads(self.attn_q(x)), rotation)
        key = rotate(self._heads(self.attn_k(x)), rotation)
        value = self._heads(self.attn_v(x))
        groups = self.shape.heads // self.shape.kv_heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return self.attn_output(attend(query, key, value, bias).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(rows, tokens, heads · head_dim) → (rows, heads, tokens, head_dim)."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)


class Block(Attention):
    """Attention, then a SwiGLU feed-forward, each on a normed copy added back to its input."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__(shape)
        self.attn_norm = nn.RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_norm = nn.RMSNorm(shape.dim, eps=shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.dim, shape.ff, bias=False)
        self.ffn_up = nn.Linear(shape.dim, shape.ff, bias=False)
        self.ffn_down = nn.Linear(shape.ff, shape.dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(super().forward(self.attn_norm(x), rotation, bias))
        normed = self.ffn_norm(x)
        return x + self.dropout(self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)))


class Llama(nn.Module):
    """Token ids (rows, tokens) → logits (rows, tokens, vocab_size)."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab_size, shape.dim)
        self.blk = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.dim, eps=shape.norm_eps)
        self.register_buffer("rotation", rotations(shape), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights of 0.02; those that write to the residual stream smaller by its number of writers (GPT-2)."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                writes = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * self.shape.layers) ** 0.5 if writes else 0.02)

    def hidden(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The last layer's output, before the vocabulary. Without `bias` (`attention_bias`) a row is a document."""
        length = tokens.shape[1]
        bias = attention_bias(torch.zeros_like(tokens[:1])) if bias is None else bias
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.rotation[:length], bias)
        return self.output_norm(x)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(self.hidden(tokens, bias), self.token_embd.weight)

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """Mean negative log-probability of the targets, each counted by its weight, in nat."""
        logits = self(tokens, bias).flatten(0, 1).float()
        losses = functional.cross_entropy(logits, targets.flatten(), ignore_index=NO_TARGET, reduction="none")
        counted = weights.flatten() * (targets.flatten() != NO_TARGET)
        return (losses * counted).sum() / counted.sum().clamp_min(1)


def attention_bias(documents: Tensor) -> Tensor:
    """What to add to the scores of rows whose tokens have these document numbers, (rows, tokens) → (rows, 1, tokens,
    tokens): 0 for a token's own document up to itself, `UNSEEN` elsewhere.

    Made outside of what is compiled, which would make it anew in every layer.
    """
    length = documents.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, UNSEEN)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention over (rows, heads, tokens, head_dim). `bias`, (rows or 1, 1, tokens, tokens), is added to scores."""
    if query.is_cuda:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    # On a CPU PyTorch's fused attention goes back over rows of 256 tokens at half the speed of plain products.
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5 + bias.to(query.dtype)
    return scores.float().softmax(-1).to(value.dtype) @ value


def rotations(shape: Shape) -> Tensor:
    """cos and sin of each position's angle for each pair: (context, head_dim / 2, 2). RoPE, arXiv:2104.09864 eq. 15.

    Attention sees only differences of positions, so a document may stand anywhere in a row.
    """
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), shape.rope_base**-pairs)
    return torch.stack((angles.cos(), angles.sin()), -1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each neighbouring pair of (rows, heads, tokens, head_dim) by its position's angle."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)
