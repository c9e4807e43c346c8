"""The training loop: on a CPU or, unchanged, on a GPU; in one go or in pieces.

What a step sees depends on the recipe's seed and the step's number alone, so a resumed training goes on as if it had
never stopped (dropout's noise aside).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from training import checkpoint, rows
from training.corpus import Text
from training.evaluate import bits_per_byte
from training.model import Llama, attention_bias
from training.muon import Muon
from training.recipe import Recipe

GRADIENT_NORM = 1.0
LOG_EVERY_STEPS = 20
VALIDATION_TOKENS = 2**16


@dataclass(frozen=True)
class Run:
    """Where and how long to train; nothing here changes the weights, but for the precisions of what is computed and of
    `small` checkpoints."""

    out: Path
    device: str
    bfloat16: bool
    minutes: float
    save_every_steps: int
    small_checkpoints: bool
    compiled: bool


def train(recipe: Recipe, run: Run, texts: dict[str, Text], held_out: Text, encode: rows.Encode) -> bool:
    """Trains from the newest checkpoint in `run.out` for `run.minutes` at most; True when the recipe is done.

    Every `LOG_EVERY_STEPS` steps a line of JSON goes to `log.jsonl`: step, loss (nat/token), learning rate, tokens/s;
    at each checkpoint one with the held-out bits per byte, in windows of the rows' length at that step.
    """
    started_s = time.monotonic()
    torch.manual_seed(recipe.seed)
    model = Llama(recipe.shape, recipe.dropout).to(run.device)
    optimizers = optimizers_of(model, recipe, bfloat16=run.bfloat16)
    first = checkpoint.resume(run.out, model, optimizers)
    loss_of = torch.compile(model.loss, dynamic=False) if run.compiled else model.loss
    batches = ahead(recipe, texts, encode, first)
    losses: list[Tensor] = []
    tokens, since_s = 0, time.monotonic()
    for step, batch in zip(range(first, recipe.steps), batches, strict=False):
        model.train()
        with torch.autocast(run.device, torch.bfloat16, enabled=run.bfloat16):
            *tensors, documents = (tensor.to(run.device, non_blocking=True) for tensor in batch)
            loss = loss_of(*tensors, attention_bias(documents))
        _descend(optimizers, loss, recipe.learning_rate_at(step))
        losses.append(loss.detach())
        tokens += batch[0].numel()
        done = step + 1
        out_of_time = time.monotonic() - started_s > run.minutes * 60
        if done % LOG_EVERY_STEPS == 0 or done == recipe.steps:
            mean = torch.stack(losses).mean().item()
            rate = tokens / (time.monotonic() - since_s)
            _log(run.out, step=done, loss=mean, learning_rate=recipe.learning_rate_at(step), tokens_per_s=rate)
            losses, tokens, since_s = [], 0, time.monotonic()
        if done % run.save_every_steps == 0 or done == recipe.steps or out_of_time:
            checkpoint.save(run.out, done, model, optimizers, small=run.small_checkpoints)
            window = recipe.stage_at(step).row_tokens
            bits = bits_per_byte(model, held_out, encode, window=window, windows=VALIDATION_TOKENS // window)
            _log(run.out, step=done, bits_per_byte=bits, minutes=(time.monotonic() - started_s) / 60)
            since_s, tokens = time.monotonic(), 0
        if out_of_time and done < recipe.steps:
            return False
    return True


def optimizers_of(model: Llama, recipe: Recipe, *, bfloat16: bool = False) -> list[Optimizer]:
    """The recipe's optimizers. Weight decay is for matrices only."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    blocks = [weight for weight in model.blk.parameters() if weight.ndim > 1]
    others = [model.token_embd.weight] if recipe.optimizer == "muon" else [model.token_embd.weight, *blocks]
    groups = [{"params": others, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    return [adamw, Muon(blocks, rate, decay, bfloat16=bfloat16)] if recipe.optimizer == "muon" else [adamw]


def _descend(optimizers: list[Optimizer], loss: Tensor, learning_rate: float) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    torch.nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], GRADIENT_NORM)
    for group in groups:
        group["lr"] = learning_rate
    for optimizer in optimizers:
        optimizer.step()


def batch_at(step: int, recipe: Recipe, texts: dict[str, Text], encode: rows.Encode) -> tuple[Tensor, ...]:
    """Tokens, targets, their weights and document numbers of one step."""
    rng = np.random.default_rng([recipe.seed, step])
    stage = recipe.stage_at(step)
    parts = list(recipe.mix)
    shares = np.array([recipe.mix[part] for part in parts])

    def documents() -> Iterator[rows.Document]:
        while True:
            text = texts[parts[rng.choice(len(parts), p=shares / shares.sum())]]
            yield rows.draw(text, stage, encode, rng)

    packed = rows.pack(documents(), stage.rows, stage.row_tokens)
    arrays = packed.tokens, packed.targets, packed.weights, packed.documents
    return tuple(torch.from_numpy(array) for array in arrays)


def ahead(recipe: Recipe, texts: dict[str, Text], encode: rows.Encode, first: int) -> Iterator[tuple[Tensor, ...]]:
    """The batches from step `first` on, each made while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(batch_at, first, recipe, texts, encode)
        for step in itertools.count(first + 1):
            batch = following.result()
            following = pool.submit(batch_at, min(step, recipe.steps - 1), recipe, texts, encode)
            yield batch


def _log(out: Path, **values: float) -> None:
    line = json.dumps({name: round(value, 6) for name, value in values.items()})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")
