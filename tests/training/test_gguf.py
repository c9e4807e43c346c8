"""What training writes, llama.cpp loads: architecture, vocabulary, fill-in-the-middle tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from andthen.engine import llama
from training import random_model, vocabulary
from training.gguf_file import MATRIX_TYPES
from training.recipe import Recipe, Shape, read

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src/andthen/engine/house/tale.gguf"
SMALL = Shape(vocab_size=1000, context=64, dim=64, layers=2, heads=4, kv_heads=2, ff=96)


def logits(model: llama.Model, tokens: list[int]) -> llama.LogitArray:
    context = llama.Context(model, cells=256, sequences=1, batch_tokens=64, threads=1)
    batch = llama.Batch(64)
    batch.count = len(tokens)
    batch.tokens[: batch.count], batch.positions[: batch.count] = tokens, np.arange(len(tokens))
    batch.wanted[: batch.count] = 1
    assert context.decode(batch) == 0
    result = context.logits(len(tokens)).copy()
    context.close()
    return result


@pytest.mark.parametrize("matrices", MATRIX_TYPES)
def test_a_random_model_loads_and_its_logits_have_the_spread_of_a_real_one(tmp_path: Path, matrices: str) -> None:
    path = tmp_path / "random.gguf"
    random_model.write(path, SMALL, matrices=matrices)
    model = llama.Model(str(path))
    assert (model.vocab_size, model.context, model.parameters) == (1000, 64, SMALL.parameters)
    tokens = model.tokenize("the cat sat", add_special=True, parse_special=False).tolist()
    assert 1.5 < logits(model, tokens).std() < 2.5
    model.close()


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    paths = tmp_path / "one" / "random.gguf", tmp_path / "two" / "random.gguf"
    for path in paths:
        path.parent.mkdir()
        random_model.write(path, SMALL)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_vocabulary_of_pairs_spells_any_text(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    random_model.write(path, SMALL)
    model = llama.Model(str(path))
    text = "Hello, wörld!\n\tdone — 🐈"
    tokens = model.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(model.pieces[token] for token in tokens).decode() == text
    assert max(map(len, model.pieces[len(vocabulary.CONTROL) :])) == 2
    model.close()


@pytest.mark.parametrize("size", [260, 65_798])
def test_a_vocabulary_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="between 261 and 65,797"):
        vocabulary.of_pairs(size)


def test_the_shipped_model_has_the_layout_that_training_writes() -> None:
    model = llama.Model(str(SHIPPED))
    assert model.add_bos
    assert model.bos == model.eos == vocabulary.CONTROL.index(vocabulary.END)
    marks = (vocabulary.FIM_PREFIX, vocabulary.FIM_SUFFIX, vocabulary.FIM_MIDDLE)
    assert model.fill_in_the_middle == tuple(map(vocabulary.CONTROL.index, marks))
    assert model.suffix_first
    assert model.pieces[: len(vocabulary.CONTROL)] == [token.encode() for token in vocabulary.CONTROL]
    assert model.tokenize("a<|fim_pad|>", add_special=True, parse_special=True)[[0, -1]].tolist() == [0, 4]
    model.close()


@pytest.mark.parametrize("path", sorted((ROOT / "training/recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_possible(path: Path) -> None:
    recipe: Recipe = read(path)
    assert max(stage.row_tokens for stage in recipe.stages) <= recipe.shape.context
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.01)
    assert 0 < rates[-1] < recipe.learning_rate / 100


def test_a_recipe_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text((ROOT / "training/recipes/tale-cpu.toml").read_text().replace("dropout", "drop_out"))
    with pytest.raises(TypeError, match="drop_out"):
        read(path)


@pytest.mark.parametrize(
    ("setting", "said"), [('optimizer = "sgd"', "muon, adamw, not sgd"), ("decay_steps = 99999", "more steps than")]
)
def test_an_impossible_recipe_is_refused(tmp_path: Path, setting: str, said: str) -> None:
    name = setting.split(" ")[0]
    lines = (ROOT / "training/recipes/tale-cpu.toml").read_text().splitlines()
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(setting if line.startswith(name) else line for line in lines))
    with pytest.raises(ValueError, match=said):
        read(path)


def test_a_shape_that_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        Shape(vocab_size=1000, context=64, dim=48, layers=1, heads=4, kv_heads=2, ff=96)
