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

from training import checkpoint, rows
from training.corpus import Text
from training.evaluate import bits_per_byte
from training.model import Llama
from training.recipe import Recipe

GRADIENT_NORM = 1.0
LOG_EVERY_STEPS = 20
VALIDATION_TOKENS = 2**16


@dataclass(frozen=True)
class Run:
    """Where and how long to train; nothing here changes the weights, but for the precision of a `small` checkpoint."""

    out: Path
    device: str
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
    optimizer = adamw(model, recipe)
    first = checkpoint.resume(run.out, model, optimizer)
    loss_of = torch.compile(model.loss) if run.compiled else model.loss
    batches = ahead(recipe, texts, encode, first)
    losses: list[Tensor] = []
    tokens, since_s = 0, time.monotonic()
    for step, batch in zip(range(first, recipe.steps), batches, strict=False):
        model.train()
        with torch.autocast(run.device, torch.bfloat16):
            loss = loss_of(*(tensor.to(run.device, non_blocking=True) for tensor in batch))
        _descend(optimizer, loss, recipe.learning_rate_at(step))
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
            checkpoint.save(run.out, done, model, optimizer, small=run.small_checkpoints)
            window = recipe.stage_at(step).row_tokens
            bits = bits_per_byte(model, held_out, encode, window=window, windows=VALIDATION_TOKENS // window)
            _log(run.out, step=done, bits_per_byte=bits, minutes=(time.monotonic() - started_s) / 60)
            since_s, tokens = time.monotonic(), 0
        if out_of_time and done < recipe.steps:
            return False
    return True


def adamw(model: Llama, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _descend(optimizer: torch.optim.AdamW, loss: Tensor, learning_rate: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
    optimizer.step()


def batch_at(step: int, recipe: Recipe, texts: dict[str, Text], encode: rows.Encode) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and document numbers of one step."""
    rng = np.random.default_rng([recipe.seed, step])
    stage = recipe.stage_at(step)
    parts = list(recipe.mix)
    shares = np.array([recipe.mix[part] for part in parts])

    def documents() -> Iterator[rows.Document]:
        while True:
            text = texts[parts[rng.choice(len(parts), p=shares / shares.sum())]]
            yield rows.draw(text, stage.row_tokens, recipe.fim_share, encode, rng)

    packed = rows.pack(documents(), stage.rows, stage.row_tokens)
    return torch.from_numpy(packed.tokens), torch.from_numpy(packed.targets), torch.from_numpy(packed.documents)


def ahead(
    recipe: Recipe, texts: dict[str, Text], encode: rows.Encode, first: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
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
