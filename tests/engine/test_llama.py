"""The binding: what it refuses, and in which words."""

from __future__ import annotations

import ctypes
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from andthen.engine import llama
from andthen.engine.batches import SLICE_TOKENS
from andthen.engine.llama import Batch, Context, Library, LlamaError, Model
from tests.engine.asking import SHIPPED


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(SHIPPED))


def test_another_struct_layout_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama._EXPECTED_DEFAULTS["context"], "n_batch", 4096)
    with pytest.raises(LlamaError, match=llama.XLLAMACPP_VERSION):
        Library()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "xllamacpp" else real(name))
    with pytest.raises(LlamaError, match=r"xllamacpp 1\.0 is installed; install xllamacpp=="):
        Library()


def test_a_processor_without_avx2_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: "flags : fpu sse avx")
    with pytest.raises(LlamaError, match="llama-cpp-python"):
        llama._require_avx2()


def test_a_file_that_is_no_model_is_told_in_llama_cpps_words(tmp_path: Path) -> None:
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGUFnothing")
    with pytest.raises(LlamaError, match=r"not\.gguf can't be loaded: .*gguf"):
        Model(str(path))


def test_a_pool_that_can_not_be_had_is_told(model: Model) -> None:
    with pytest.raises(LlamaError, match="no context of"):
        Context(model, cells=1024, sequences=100_000, batch_tokens=32, threads=1)


def test_weights_are_not_needed_to_know_a_model(model: Model) -> None:
    known = Model(str(SHIPPED), weights=False)
    assert known.parameters == model.parameters
    assert known.bytes_per_cell == model.bytes_per_cell
    assert known.tokenize("Once upon", add_special=True, parse_special=True).tolist() == (
        model.tokenize("Once upon", add_special=True, parse_special=True).tolist()
    )


def test_texts_are_their_tokens_pieces(model: Model) -> None:
    for text in ("Once upon a time", "  two\n\nlines\t", "é€😀\x00", "<|fim_prefix|>"):
        tokens = model.tokenize(text, add_special=False, parse_special=True)
        assert b"".join(model.pieces[token] for token in tokens) == text.encode()
    assert model.longest_piece == max(map(len, model.pieces))


def test_rows_in_slices_have_equal_bits_in_any_company(model: Model) -> None:
    """What the promise of seeds stands on: see `batches`."""
    context = Context(
        model, cells=64 * 256, sequences=64, batch_tokens=256, slice_tokens=SLICE_TOKENS, streams=True, threads=1
    )
    tokens = np.random.default_rng(0).integers(5, model.vocab_size, 130)

    def rows(company: int, chunk: int, threads: int = 1) -> np.ndarray:
        context._lib.set_n_threads(ctypes.c_void_p(context._handle), threads, threads)
        context.clear()
        found = []
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk].tolist()
            places = range(start, start + len(part))
            batch = Batch(256)
            others = range(1, company + 1)
            everybody = [0] * len(part) + [id for id in others for _ in part]
            count = len(everybody)
            batch.fill(part * (company + 1), [*places] * (company + 1), everybody, [1] * count)
            assert context.decode(batch) == 0
            found.append(context.logits(count)[: len(part)].copy())
        return np.concatenate(found)

    wanted = rows(company=1, chunk=1)
    for company, chunk, threads in ((7, 1, 1), (31, 1, 2), (0, 130, 1), (0, 13, 2), (3, 13, 1), (61, 2, 1)):
        assert (rows(company, chunk, threads) == wanted).all()
    context.close()
