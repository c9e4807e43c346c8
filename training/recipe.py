"""What a model is and how it is trained: a table read from a TOML file in `recipes/`. Knows no torch and no corpus."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Optimizer = Literal["muon", "adamw"]


@dataclass(frozen=True)
class Shape:
    """A llama-architecture decoder with tied embeddings; sizes in elements, `context` in tokens."""

    vocab_size: int
    context: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ff: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.heads % self.kv_heads:
            raise ValueError("shape: dim must be a multiple of heads, and heads a multiple of kv_heads")
        if self.dim % 32 or self.ff % 32:
            raise ValueError("shape: dim and ff must be multiples of 32, the block of Q8_0")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def kv_dim(self) -> int:
        return self.head_dim * self.kv_heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Each weight's shape (outputs first) by its name in a GGUF, which is also its name in the PyTorch model."""
        sizes: dict[str, tuple[int, ...]] = {"token_embd": (self.vocab_size, self.dim)}
        for block in range(self.layers):
            sizes |= {
                f"blk.{block}.attn_norm": (self.dim,),
                f"blk.{block}.attn_q": (self.dim, self.dim),
                f"blk.{block}.attn_k": (self.kv_dim, self.dim),
                f"blk.{block}.attn_v": (self.kv_dim, self.dim),
                f"blk.{block}.attn_output": (self.dim, self.dim),
                f"blk.{block}.ffn_norm": (self.dim,),
                f"blk.{block}.ffn_gate": (self.ff, self.dim),
                f"blk.{block}.ffn_up": (self.ff, self.dim),
                f"blk.{block}.ffn_down": (self.dim, self.ff),
            }
        sizes["output_norm"] = (self.dim,)
        return {f"{name}.weight": size for name, size in sizes.items()}

    @property
    def parameters(self) -> int:
        return sum(math.prod(size) for size in self.tensors().values())


@dataclass(frozen=True)
class Stage:
    """A stretch of training on rows of one length: `steps` updates of `rows` × `row_tokens` tokens each."""

    steps: int
    rows: int
    row_tokens: int
    fim_share: float
    """Share of the documents that are cut for fill-in-the-middle."""
    cut_tokens: int
    """How long cut documents are at most, about. The shorter, the more gaps there are to learn from."""
    whole_suffix_share: float
    """Share of those that are as requests are: long, and with all of the suffix. Most of the others are short and have
    a few words of it, from which a model learns sooner where to look."""
    suffix_first_share: float
    """Share of the cut documents whose suffix comes before the prefix; in the others it follows it."""
    middle_weight: float
    """What a token of a gap's middle counts in the loss at least; others count 1. Middles are a fifth of a cut
    document, and nothing else teaches what a suffix is for."""
    middle_tokens: float
    """A short middle counts in all as much as this many tokens, but none of its own more than `rows.MOST_PER_TOKEN`:
    about the short ones the suffix can tell most, and they would be lost among the long."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, the corpus aside."""

    shape: Shape
    seed: int
    mix: dict[str, float]
    """The parts of the corpus, and each one's share of the documents."""
    stages: tuple[Stage, ...]
    optimizer: Optimizer
    """`muon`: Muon for the blocks' matrices, AdamW for embeddings and norms; `adamw`: AdamW for all."""
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    """The last steps, over which the learning rate falls. Before them the number of steps can still be changed."""
    weight_decay: float
    dropout: float
    about: dict[str, str]
    """What the GGUF says of itself: `name`, `description`, `license` …"""

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"optimizer: one of {', '.join(get_args(Optimizer))}, not {self.optimizer}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError("warmup_steps and decay_steps: more steps than the stages have")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def suffix_first(self) -> bool:
        """How gaps are to be asked: as the last stage mostly cuts them."""
        return self.stages[-1].suffix_first_share > 0.5

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, a level stretch, then a straight line to zero at the last step."""
        rising = (step + 1) / self.warmup_steps
        falling = (self.steps - step) / self.decay_steps
        return self.learning_rate * min(1.0, rising, falling)


def read(path: Path) -> Recipe:
    """Reads a recipe. Raises TypeError for an unknown or missing setting, ValueError for an impossible one."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    shape = Shape(**table.pop("shape"))
    stages = tuple(Stage(**stage) for stage in table.pop("stages"))
    return Recipe(shape=shape, stages=stages, **table)
