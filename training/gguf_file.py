"""Writes a GGUF that llama.cpp loads as its `llama` architecture. Knows numpy and gguf; no torch.

The keys are those of the GGUF specification (ggml-org/ggml docs/gguf.md). With pre-tokenizer `gpt-2` llama.cpp splits
exactly as the tokenizers library's `ByteLevel(use_regex=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from training.recipe import Shape
from training.vocabulary import CONTROL, END, FIM_MIDDLE, FIM_PAD, FIM_PREFIX, FIM_SUFFIX, Vocabulary

MATRIX_TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def write(
    path: Path,
    shape: Shape,
    vocabulary: Vocabulary,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    matrices: str = "f16",
    about: Mapping[str, str],
    suffix_first: bool = False,
) -> None:
    """Writes `weights` (names and shapes of `shape.tensors()`); matrices as `matrices`, norms in F32.

    `about` holds `name`, and whatever else of `description`, `license`, `author` is to be said. `suffix_first`: gaps
    are to be asked so; for want of a standard key it stands under one of the engine's.
    """
    if len(vocabulary.tokens) != shape.vocab_size:
        raise ValueError(f"the vocabulary has {len(vocabulary.tokens)} tokens, the model {shape.vocab_size}")
    writer = gguf.GGUFWriter(path, "llama")
    for key, words in about.items():
        writer.add_string(f"general.{key}", words)
    writer.add_file_type(FILE_TYPES[matrices])
    _add_shape(writer, shape)
    _add_vocabulary(writer, vocabulary)
    writer.add_bool("andthen.suffix_first", suffix_first)
    for name, size in shape.tensors().items():
        tensor = weights[name]
        if tensor.shape != size:
            raise ValueError(f"{name} has shape {tensor.shape}, wanted {size}")
        kind = MATRIX_TYPES[matrices] if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_feed_forward_length(shape.ff)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([control if token in CONTROL else normal for token in vocabulary.tokens])
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    end = CONTROL.index(END)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(CONTROL.index(FIM_PAD))
    for key, token in (("pre", FIM_PREFIX), ("suf", FIM_SUFFIX), ("mid", FIM_MIDDLE), ("pad", FIM_PAD)):
        writer.add_uint32(f"tokenizer.ggml.fim_{key}_token_id", CONTROL.index(token))
