"""The binding to llama.cpp's C API: the only file with native code.

`llama.h` is reached through `ctypes`. The library is `llama-cpp-python`'s where that is installed (it brings its own
struct layouts), otherwise the extension module of the pinned `xllamacpp` wheel, whose struct layouts stand below; they
were read from the `llama.h` in that version's source distribution. `CDLL` releases the GIL for every call.

Knows nothing of requests, sequences' owners or sampling.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import platform
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from andthen.engine import pulse

XLLAMACPP_VERSION = "2026.10.11549"

TokenArray = npt.NDArray[np.int32]
LogitArray = npt.NDArray[np.float32]


class LlamaError(Exception):
    """The library can't be loaded, or it refused what it was asked."""


class _ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    ]


class _ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("ctx_type", ctypes.c_int),
        ("rope_scaling_type", ctypes.c_int),
        ("pooling_type", ctypes.c_int),
        ("attention_type", ctypes.c_int),
        ("flash_attn_type", ctypes.c_int),
        ("rope_freq_base", ctypes.c_float),
        ("rope_freq_scale", ctypes.c_float),
        ("yarn_ext_factor", ctypes.c_float),
        ("yarn_attn_factor", ctypes.c_float),
        ("yarn_beta_fast", ctypes.c_float),
        ("yarn_beta_slow", ctypes.c_float),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int),
        ("type_v", ctypes.c_int),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("embeddings", ctypes.c_bool),
        ("offload_kqv", ctypes.c_bool),
        ("no_perf", ctypes.c_bool),
        ("op_offload", ctypes.c_bool),
        ("swa_full", ctypes.c_bool),
        ("kv_unified", ctypes.c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    ]


# What `llama_*_default_params` of the pinned build return: a build whose layout moved shows here, not as a crash.
_EXPECTED_DEFAULTS: dict[str, dict[str, object]] = {
    "model": {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0,
              "vocab_only": False, "use_extra_bufts": True, "load_mtp": False},
    "context": {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": 0,
                "n_outputs_max_per_seq": 1, "flash_attn_type": -1, "yarn_ext_factor": -1.0, "defrag_thold": -1.0,
                "type_k": 1, "type_v": 1, "no_perf": True, "op_offload": True, "swa_full": True,
                "kv_unified": False, "n_samplers": 0},
}  # fmt: skip

_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_LOG_WARNING = 3
_SUFFIX_FIRST = "andthen.suffix_first"
"""A key of our own in a GGUF, true or false: no standard one says in which order a gap is read."""
_LOAD_MODE_NONE = 0


class Library:
    """The loaded library with its functions declared.

    Raises:
        LlamaError: no library for this machine, or one whose structs are not those declared here.
    """

    def __init__(self) -> None:
        self.complaints: deque[str] = deque(maxlen=20)
        self._lib, self.model_params, self.context_params, self.build = _open_library()
        self._declare()
        self._check_layout()
        self._log_callback = _LogCallback(self._log)
        self._lib.llama_log_set(self._log_callback, None)
        self._lib.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, f"llama_{name}")

    def _declare(self) -> None:
        pointer, i32, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "backend_init": (None, []),
            "log_set": (None, [_LogCallback, pointer]),
            "model_default_params": (self.model_params, []),
            "context_default_params": (self.context_params, []),
            "model_load_from_file": (pointer, [text, self.model_params]),
            "model_free": (None, [pointer]),
            "init_from_model": (pointer, [pointer, self.context_params]),
            "free": (None, [pointer]),
            "get_memory": (pointer, [pointer]),
            "memory_seq_rm": (ctypes.c_bool, [pointer, i32, i32, i32]),
            "memory_seq_cp": (None, [pointer, i32, i32, i32, i32]),
            "memory_clear": (None, [pointer, ctypes.c_bool]),
            "decode": (i32, [pointer, _Batch]),
            "set_abort_callback": (None, [pointer, pointer, pointer]),
            "get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
            "model_get_vocab": (pointer, [pointer]),
            "model_n_ctx_train": (i32, [pointer]),
            "model_n_embd": (i32, [pointer]),
            "model_n_layer": (i32, [pointer]),
            "model_n_head": (i32, [pointer]),
            "model_n_head_kv": (i32, [pointer]),
            "model_n_swa": (i32, [pointer]),
            "model_n_params": (ctypes.c_uint64, [pointer]),
            "model_size": (ctypes.c_uint64, [pointer]),
            "model_desc": (i32, [pointer, text, ctypes.c_size_t]),
            "model_meta_val_str": (i32, [pointer, text, text, ctypes.c_size_t]),
            "model_is_recurrent": (ctypes.c_bool, [pointer]),
            "model_is_hybrid": (ctypes.c_bool, [pointer]),
            "model_has_encoder": (ctypes.c_bool, [pointer]),
            "model_chat_template": (text, [pointer, text]),
            "vocab_n_tokens": (i32, [pointer]),
            "vocab_get_add_bos": (ctypes.c_bool, [pointer]),
            "vocab_is_eog": (ctypes.c_bool, [pointer, i32]),
            "tokenize": (i32, [pointer, text, i32, pointer, i32, ctypes.c_bool, ctypes.c_bool]),
            "token_to_piece": (i32, [pointer, i32, text, i32, i32, ctypes.c_bool]),
        }
        for token in ("bos", "eos", "pad", "fim_pre", "fim_suf", "fim_mid"):
            signatures[f"vocab_{token}"] = (i32, [pointer])
        for name, (result, arguments) in signatures.items():
            function = getattr(self, name)
            function.restype, function.argtypes = result, arguments

    def _check_layout(self) -> None:
        if self.model_params is not _ModelParams:
            return  # llama-cpp-python declares the structs of the library that it compiled
        for kind, expected in _EXPECTED_DEFAULTS.items():
            defaults = getattr(self, f"{kind}_default_params")()
            found = {name: getattr(defaults, name) for name in expected}
            if found != expected:
                raise LlamaError(
                    f"the installed xllamacpp {self.build} does not have the struct layout of {XLLAMACPP_VERSION}: "
                    f"llama_{kind}_params reads {found}; install xllamacpp=={XLLAMACPP_VERSION}"
                )

    def _log(self, level: int, line: bytes | None, _user_data: object) -> None:
        if line and level >= _LOG_WARNING:
            self.complaints.append(line.decode(errors="replace").strip())


def _open_library() -> tuple[ctypes.CDLL, type[ctypes.Structure], type[ctypes.Structure], str]:
    if importlib.util.find_spec("llama_cpp") is not None:
        module = importlib.import_module("llama_cpp.llama_cpp")
        build = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
        return module._lib, module.llama_model_params, module.llama_context_params, build
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise LlamaError(f"no llama.cpp library: install xllamacpp=={XLLAMACPP_VERSION} or llama-cpp-python")
    version = importlib.metadata.version("xllamacpp")
    if version != XLLAMACPP_VERSION:
        raise LlamaError(f"xllamacpp {version} is installed; install xllamacpp=={XLLAMACPP_VERSION}")
    _require_avx2()
    modules = sorted(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))
    if not modules:
        raise LlamaError("this xllamacpp wheel holds no shared library; install llama-cpp-python instead")
    try:
        return ctypes.CDLL(str(modules[0])), _ModelParams, _ContextParams, f"xllamacpp {version}"
    except OSError as error:
        remedy = " (Debian: apt-get install libgomp1)" if "libgomp" in str(error) else ""
        raise LlamaError(f"llama.cpp can't be loaded: {error}{remedy}") from error


def _require_avx2() -> None:
    """The x86-64 wheel is compiled for AVX2 and would end the process with SIGILL on an older processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpuinfo.exists() and " avx2 " not in cpuinfo.read_text():
        raise LlamaError("this processor lacks AVX2, which the xllamacpp wheel needs; install llama-cpp-python instead")


@functools.cache
def library() -> Library:
    """The one library of this process, loaded at the first call."""
    return Library()


class Model:
    """A GGUF file: its vocabulary and, if `weights`, what computes.

    Raises:
        LlamaError: not a model that llama.cpp reads, with llama.cpp's own words.
    """

    def __init__(self, path: str, *, gpu_layers: int = 0, weights: bool = True) -> None:
        self.lib = library()
        params = self.lib.model_default_params()
        params.n_gpu_layers = gpu_layers
        if not weights and hasattr(params, "no_alloc"):
            params.no_alloc = True  # measures the tensors without reading them …
            params.load_mode = _LOAD_MODE_NONE  # … which a memory map can't
        elif not weights:
            params.vocab_only = True
        self.lib.complaints.clear()
        self.handle = self.lib.model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LlamaError(f"{path} can't be loaded: {'; '.join(self.lib.complaints) or 'no reason given'}")
        self._vocab = self.lib.model_get_vocab(self.handle)
        self.vocab_size: int = self.lib.vocab_n_tokens(self._vocab)
        self.context: int = self.lib.model_n_ctx_train(self.handle)
        self.add_bos: bool = self.lib.vocab_get_add_bos(self._vocab)
        self.bos, self.eos, self.pad = (self._special(name) for name in ("bos", "eos", "pad"))
        marks = [self._special(name) for name in ("fim_pre", "fim_suf", "fim_mid")]
        self.fill_in_the_middle: tuple[int, int, int] | None = (
            (marks[0], marks[1], marks[2]) if None not in marks else None  # type: ignore[assignment]
        )

        self.suffix_first: bool = self._said(_SUFFIX_FIRST) == b"true"
        """Whether it has learnt to read a gap's suffix before the prefix."""

    def _said(self, key: str) -> bytes:
        """What the file says under a key, as text; nothing where it lacks it."""
        buffer = ctypes.create_string_buffer(64)
        self.lib.model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value

    def _special(self, name: str) -> int | None:
        token = int(getattr(self.lib, f"vocab_{name}")(self._vocab))
        return token if token >= 0 else None

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """Each token's bytes, control tokens as their text; may be a part of a character."""
        return [self._piece(token) for token in range(self.vocab_size)]

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(self.lib.token_to_piece(self._vocab, token, buffer, room, 0, True))
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    @functools.cached_property
    def longest_piece(self) -> int:
        """Bytes of the longest token: a text of b bytes has at least b / longest_piece tokens."""
        return max(map(len, self.pieces), default=1) or 1

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a generation (end of text, of turn …)."""
        return frozenset(token for token in range(self.vocab_size) if self.lib.vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> TokenArray:
        """The text's token ids, int32. `add_special` lets the model's own rule add a BOS. Thread-safe."""
        data = text.encode()
        room = len(data) + 8
        while True:
            tokens = np.empty(room, np.int32)
            count = int(
                self.lib.tokenize(self._vocab, data, len(data), tokens.ctypes.data, room, add_special, parse_special)
            )
            if count >= 0:
                return tokens[:count].copy()
            if count == -(2**31):
                raise LlamaError("the text has more tokens than the library can count")
            room = -count

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self.lib.model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def parameters(self) -> int:
        return int(self.lib.model_n_params(self.handle))

    @property
    def size_bytes(self) -> int:
        return int(self.lib.model_size(self.handle))

    @property
    def chat_template(self) -> str | None:
        template = self.lib.model_chat_template(self.handle, None)
        return template.decode(errors="replace") if template else None

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can be cut back and forked in its middle: not in recurrent, hybrid or sliding-window
        models, whose state is not one cell a token."""
        return not (
            self.lib.model_is_recurrent(self.handle)
            or self.lib.model_is_hybrid(self.handle)
            or self.lib.model_n_swa(self.handle) > 0
        )

    @property
    def bytes_per_cell(self) -> int:
        """Bytes that one token takes in an F16 key-value pool: keys and values of every layer."""
        width = self.lib.model_n_embd(self.handle) // max(1, self.lib.model_n_head(self.handle))
        return int(self.lib.model_n_layer(self.handle) * self.lib.model_n_head_kv(self.handle) * width * 2 * 2)

    def close(self) -> None:
        if self.handle:
            self.lib.model_free(self.handle)
            self.handle = None


class Batch:
    """Tokens for one `decode`, at most `size`: each with its position, its sequence and whether its logits are
    wanted. The arrays are filled in place; one sequence a token."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.sequences = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        step = self.sequences.itemsize
        self._sequence_pointers = (self.sequences.ctypes.data + step * np.arange(size)).astype(np.uintp)
        self._struct = _Batch(
            0,
            self.tokens.ctypes.data,
            None,
            self.positions.ctypes.data,
            self._ones.ctypes.data,
            self._sequence_pointers.ctypes.data,
            self.wanted.ctypes.data,
        )

    def fill(self, tokens: list[int], positions: list[int], sequences: list[int], wanted: list[int]) -> None:
        """One row per token; lists of equal length."""
        count = self.count = len(tokens)
        self.tokens[:count] = tokens
        self.positions[:count] = positions
        self.sequences[:count] = sequences
        self.wanted[:count] = wanted

    @property
    def struct(self) -> ctypes.Structure:
        self._struct.n_tokens = self.count
        return self._struct


class Context:
    """A key-value pool and the computing of batches. Not thread-safe; `decode` releases the GIL.

    Args:
        model: with its weights.
        cells: tokens that the pool holds, of all sequences together.
        sequences: ids that there are.
        batch_tokens: rows of a batch at most.
        slice_tokens: rows that are computed at once at most; 0 is the whole batch.
        streams: each sequence has cells / sequences cells of its own, a multiple of 256, in place of a shared pool.
        threads: that compute.

    Raises:
        LlamaError: the pool can't be had.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch_tokens: int,
        threads: int,
        slice_tokens: int = 0,
        streams: bool = False,
    ) -> None:
        self._lib = model.lib
        self._model = model
        self._streams = streams
        params = self._lib.context_default_params()
        params.n_ctx = cells
        params.n_batch = batch_tokens
        params.n_ubatch = slice_tokens or batch_tokens
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = not streams
        params.flash_attn_type = 1  # without it every row attends over everybody's cells
        params.swa_full = True
        if hasattr(params, "n_outputs_max_per_seq"):
            params.n_outputs_max_per_seq = 0  # prompt log-probabilities want many outputs of one sequence
        self._lib.complaints.clear()
        self._handle = self._lib.init_from_model(model.handle, params)
        if not self._handle:
            raise LlamaError(f"no context of {cells} tokens: {'; '.join(self._lib.complaints) or 'no reason given'}")
        self._memory = self._lib.get_memory(self._handle)
        if callback := pulse.own.on_node():
            self._lib.set_abort_callback(self._handle, *callback)  # it never aborts

    def decode(self, batch: Batch) -> int:
        """Computes the batch. 0: done; 1: no cells free, nothing changed; 2: aborted; negative: refused or failed."""
        return int(self._lib.decode(self._handle, batch.struct))

    def logits(self, rows: int) -> LogitArray:
        """The wanted tokens' logits in batch order, float32 of (rows, vocabulary): a view that the next `decode`
        overwrites."""
        pointer = self._lib.get_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(rows, self._model.vocab_size))

    def fork(self, source: int, target: int, length: int) -> None:
        """The target sequence, which has no cells, gets the source's first `length`: shares them, or with streams has
        them copied before the next `decode`."""
        if self._streams:
            self._lib.memory_seq_cp(self._memory, source, target, -1, -1)
            self._lib.memory_seq_rm(self._memory, target, length, -1)
        else:
            self._lib.memory_seq_cp(self._memory, source, target, 0, length)

    def drop(self, sequence: int, start: int = 0) -> bool:
        """Frees the sequence's cells from position `start`; False where the model can't be cut there."""
        return bool(self._lib.memory_seq_rm(self._memory, sequence, start, -1))

    def clear(self) -> None:
        self._lib.memory_clear(self._memory, False)

    def close(self) -> None:
        if self._handle:
            self._lib.free(self._handle)
            self._handle = None
