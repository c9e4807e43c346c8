"""A training learns, and one in pieces ends with the bytes of one in a single go. Needs torch, as training does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from training import checkpoint
from training.corpus import Text
from training.model import Llama, attend, attention_bias
from training.muon import orthogonal
from training.recipe import Recipe, Shape, Stage
from training.train import Run, optimizers_of, train

BOOK = Text.of("The cat sat on the mat, and the cat was happy.\n" * 40)
STAGE = Stage(
    steps=4,
    rows=4,
    row_tokens=256,
    fim_share=0.5,
    cut_tokens=256,
    whole_suffix_share=0.5,
    suffix_first_share=0.5,
    middle_weight=2.0,
    middle_tokens=20.0,
)
RECIPE = Recipe(
    shape=Shape(vocab_size=288, context=256, dim=32, layers=2, heads=4, kv_heads=2, ff=64),
    seed=1,
    mix={"tale": 1.0},
    stages=(dataclasses.replace(STAGE, steps=40),),
    optimizer="muon",
    learning_rate=1e-2,
    warmup_steps=2,
    decay_steps=15,
    weight_decay=0.1,
    dropout=0.0,
    about={"name": "test"},
)


def encode(text: str) -> list[int]:
    return [5 + byte for byte in text.encode()]


def trained(out: Path, recipe: Recipe = RECIPE, *, minutes: float = 1.0) -> dict[str, Any]:
    run = Run(out, "cpu", False, minutes, save_every_steps=100, small_checkpoints=False, compiled=False)
    out.mkdir(exist_ok=True)
    while not train(recipe, run, {"tale": BOOK}, BOOK, encode):
        pass
    model = Llama(recipe.shape)
    assert checkpoint.resume(out, model) == recipe.steps
    return dict(model.state_dict())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_training_in_pieces_gives_the_same_weights_as_one_in_a_single_go(
    tmp_path: Path, optimizer: Literal["muon", "adamw"]
) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, warmup_steps=1, decay_steps=2, stages=(STAGE,))
    whole = trained(tmp_path / "whole", recipe)
    pieces = trained(tmp_path / "pieces", recipe, minutes=0.0)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_training_learns(tmp_path: Path) -> None:
    trained(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text()
    assert '"step": 40, "loss"' in lines
    bits = float(lines.rsplit('"bits_per_byte": ', 1)[1].split(",")[0])
    assert bits < 3.5, "bytes drawn evenly take 8 bits, letters by their frequency 3.6"


def test_muon_is_for_the_blocks_matrices_alone() -> None:
    model = Llama(RECIPE.shape)
    adamw, muon = optimizers_of(model, RECIPE)
    by_muon = {id(weight) for group in muon.param_groups for weight in group["params"]}
    by_adamw = {id(weight) for group in adamw.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        assert (id(weight) in by_muon) == (name.startswith("blk.") and weight.ndim == 2)
        assert (id(weight) in by_adamw) != (id(weight) in by_muon)


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24)])
def test_an_update_counts_every_direction_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonal(matrix))
    assert before.max() / before.min() > 2
    assert 0.6 < after.min() <= after.max() < 1.3


def test_attention_is_pytorchs_own_and_stays_inside_a_document() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 3, 3]])
    query, key, value = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    same = documents[:, None, :, None] == documents[:, None, None, :]
    seen = same & torch.ones(6, 6, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(attend(query, key, value, attention_bias(documents)), expected)
