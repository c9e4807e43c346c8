"""A trained model → GGUF, and the GGUF in llama.cpp against the model in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from andthen.engine.llama import Batch, Context, Model
from training import gguf_file, vocabulary
from training.model import Llama
from training.recipe import Recipe

CONTINUATION_TOKENS = 60
NEAR_TIE_NAT = 0.01
"""Where the two best tokens are this close, F16 may well choose the other one."""


@dataclass(frozen=True)
class Agreement:
    """llama.cpp against PyTorch in float32 on `prompts` prompts."""

    prompts: int
    tokens_differing: int
    """Prompts that the two tokenizers split differently."""
    largest_difference: float
    """Of a prompt token's log-probability, in nat."""
    continuations_differing: int
    """Greedy continuations that part ways at a place that is no near tie."""


def export(model: Llama, recipe: Recipe, tokenizer_file: Path, path: Path) -> None:
    """Writes the model as F16 with norms in F32."""
    weights = {name: weight.detach().float().cpu().numpy() for name, weight in model.state_dict().items()}
    words = vocabulary.read(tokenizer_file)
    gguf_file.write(path, recipe.shape, words, weights, about=recipe.about, suffix_first=recipe.suffix_first)


@torch.inference_mode()
def compare(model: Llama, path: Path, prompts: list[str], tokenized: list[list[int]]) -> Agreement:
    """`tokenized`: the prompts by the tokenizers library, without BOS."""
    model.eval().cpu().float()
    native = _Native(path, model.shape.context)
    tokens_differing = continuations_differing = 0
    largest = 0.0
    for prompt, ids in zip(prompts, tokenized, strict=True):
        own = native.model.tokenize(prompt, add_special=True, parse_special=False).tolist()
        tokens_differing += own != [native.model.bos, *ids]
        ours, theirs = _logprobs(model, own), native.logprobs(own)
        scored = np.arange(len(own) - 1), own[1:]
        largest = max(largest, float(np.abs(ours[:-1][scored] - theirs[:-1][scored]).max()))
        continuations_differing += _part_ways(model, native, own)
    return Agreement(len(prompts), tokens_differing, largest, continuations_differing)


def _part_ways(model: Llama, native: _Native, tokens: list[int]) -> bool:
    """Whether the greedy continuations differ before any near tie; after one there is nothing to compare."""
    for _ in range(CONTINUATION_TOKENS):
        ours, theirs = _logprobs(model, tokens)[-1], native.logprobs(tokens)[-1]
        best = int(ours.argmax())
        second, first = np.sort(ours)[-2:]
        if best != int(theirs.argmax()):
            return bool(first - second > NEAR_TIE_NAT)
        tokens = [*tokens, best]
    return False


def _logprobs(model: Llama, tokens: list[int]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = model(torch.tensor([tokens]))[0].log_softmax(-1).numpy()
    return result


class _Native:
    """The GGUF in llama.cpp, one sequence at a time."""

    def __init__(self, path: Path, context: int) -> None:
        self.model = Model(str(path))
        self._context = Context(self.model, cells=context, sequences=1, batch_tokens=context, threads=1)
        self._batch = Batch(context)

    def logprobs(self, tokens: list[int]) -> NDArray[np.float32]:
        """After each token, of every token: (tokens, vocabulary)."""
        count = len(tokens)
        batch = self._batch
        batch.tokens[:count], batch.positions[:count], batch.wanted[:count] = tokens, np.arange(count), 1
        batch.count = count
        self._context.clear()
        if code := self._context.decode(batch):
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self._context.logits(count).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        result: NDArray[np.float32] = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
        return result
