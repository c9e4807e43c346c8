"""Writes a GGUF of random weights, of any size: something to measure speed on. Needs numpy and gguf only.

The architecture and the vocabulary's layout are those of the model that ships. The weights are scaled so that logits
have a standard deviation of about 2 and a sampled text wanders over the vocabulary as a real one does. The same
options give the same bytes.

    python -m training.random_model /tmp/random-134m.gguf                # 134M parameters, Q8_0
    python -m training.random_model /tmp/small.gguf --vocab 4096 --dim 128 --layers 3 --heads 4 --kv-heads 2 --ff 224
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training import gguf_file, vocabulary
from training.recipe import Shape

SHAPE_134M = Shape(vocab_size=32_768, context=1024, dim=768, layers=16, heads=12, kv_heads=4, ff=2272)
LOGIT_SCALE = 2.0


class RandomWeights(Mapping[str, NDArray[np.float32]]):
    """The tensors of `shape`, each made when it is asked for, so that a large model is never whole in memory as F32."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._sizes = shape.tensors()
        self._seed = seed

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        size = self._sizes[name]
        rng = np.random.default_rng([self._seed, list(self._sizes).index(name)])
        if name == "output_norm.weight":
            # Of either sign: with tied embeddings a plain norm would have every token repeat itself.
            return LOGIT_SCALE * rng.standard_normal(size, np.float32)
        if len(size) == 1:
            return np.ones(size, np.float32)
        return rng.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def write(path: Path, shape: Shape = SHAPE_134M, *, matrices: str = "q8_0", seed: int = 0) -> None:
    """Writes the model; `matrices` is `f16` or `q8_0`. Raises ValueError for a vocabulary size outside 261 … 65,797."""
    about = {"name": path.stem, "description": "Random weights, for measuring speed."}
    words = vocabulary.of_pairs(shape.vocab_size)
    gguf_file.write(path, shape, words, RandomWeights(shape, seed), matrices=matrices, about=about)


def main() -> None:
    plain = SHAPE_134M
    parser = argparse.ArgumentParser(prog="python -m training.random_model", description="A GGUF of random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", choices=sorted(gguf_file.MATRIX_TYPES), default="q8_0", help="default: q8_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=plain.vocab_size)
    parser.add_argument("--context", type=int, default=plain.context)
    parser.add_argument("--dim", type=int, default=plain.dim)
    parser.add_argument("--layers", type=int, default=plain.layers)
    parser.add_argument("--heads", type=int, default=plain.heads)
    parser.add_argument("--kv-heads", type=int, default=plain.kv_heads)
    parser.add_argument("--ff", type=int, default=plain.ff)
    options = parser.parse_args()
    shape = Shape(
        options.vocab, options.context, options.dim, options.layers, options.heads, options.kv_heads, options.ff
    )
    write(options.path, shape, matrices=options.type, seed=options.seed)
    print(f"{options.path}: {shape.parameters:,} parameters, {options.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
