"""The engine's models: known from the start by their vocabulary, loaded with their weights when first asked for, and
unloaded, idle longest first, to keep the bound of memory.

Used by many threads; a runner itself is only ever touched by the engine's.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import structlog

from andthen.contract.errors import AndthenError, InternalError, ModelNotFound, NoCapacity
from andthen.engine.batches import SLICE_TOKENS
from andthen.engine.job import Job
from andthen.engine.llama import LlamaError, Model
from andthen.engine.messages import ModelInfo
from andthen.engine.runner import Counts, Options, Runner
from andthen.engine.scheduler import Bounds
from andthen.engine.settings import EngineSettings, ModelSettings

_MAX_IDS = 256
"""llama.cpp's LLAMA_MAX_SEQ."""
_POOL_CONTEXTS = 32
_POOL_STREAMS = 48
_LEAST_STREAMS = 4
_STREAM_STEP = 256
"""A stream's cells are a multiple of this (llama.cpp pads n_ctx_seq)."""
_CACHED_CONTEXTS = 2
"""Every cell in use costs every row a look, so the shared pool keeps few prefixes."""
_LEAST_READ = 32
"""Prompt tokens that a step has room for beside a full house."""
_POOL_BYTES = 2 << 30
_HASHED_BYTES = 1 << 20
_LOAD_RETRY_AFTER_S = 5

_LOG = structlog.get_logger("andthen.engine")


class Known:
    """A configured model: what it is and what it takes, without its weights."""

    def __init__(self, name: str, settings: ModelSettings, max_sequences: int, batch_tokens: int) -> None:
        self.name = name
        self.settings = settings
        self.vocabulary = Model(settings.path, weights=False)
        self._order = ""
        """How gaps are read, where that is not as the file says: other texts come of it."""
        if settings.suffix_first not in (None, self.vocabulary.suffix_first):
            self.vocabulary.suffix_first = bool(settings.suffix_first)
            self._order = "+suffix-first" if settings.suffix_first else "+suffix-last"
        own = self.vocabulary.context
        self.context = min(settings.context or own, own)
        per_cell = max(1, self.vocabulary.bytes_per_cell)
        self.exact = settings.deterministic and self.vocabulary.rewinds
        roomy = _POOL_STREAMS * _up(self.context, _STREAM_STEP) * per_cell <= _POOL_BYTES and not settings.cells
        self.streams = self.exact or (roomy and self.vocabulary.rewinds)
        if self.streams:
            self.bounds = self._stream_bounds(per_cell, max_sequences, batch_tokens)
        else:
            self.bounds = self._shared_bounds(per_cell, max_sequences, batch_tokens)
        self.bytes_needed = Path(settings.path).stat().st_size + self.bounds.cells * per_cell
        self.info = self._describe()

    def _shared_bounds(self, per_cell: int, max_sequences: int, batch_tokens: int) -> Bounds:
        contexts = max(1, min(_POOL_CONTEXTS, _POOL_BYTES // (per_cell * self.context)))
        cells = max(self.settings.cells or contexts * self.context, self.context)
        return Bounds(
            cells=cells,
            ids=_MAX_IDS,
            running=max_sequences,
            batch_tokens=max(batch_tokens, max_sequences + _LEAST_READ),
            cache_cells=min(cells // 4, _CACHED_CONTEXTS * self.context) if self.vocabulary.rewinds else 0,
        )

    def _stream_bounds(self, per_cell: int, max_sequences: int, batch_tokens: int) -> Bounds:
        own = _up(self.context, _STREAM_STEP)
        wanted = self.settings.cells // own or min(_POOL_STREAMS, _POOL_BYTES // (per_cell * own))
        streams = max(_LEAST_STREAMS, min(wanted, _MAX_IDS))
        cached = streams // 6
        running = min(max_sequences, streams - cached, SLICE_TOKENS if self.exact else streams)
        return Bounds(
            cells=streams * own,
            ids=streams,
            running=running,
            batch_tokens=max(batch_tokens, running + _LEAST_READ),
            cache_cells=cached * own,
            cache_ids=cached,
        )

    def _describe(self) -> ModelInfo:
        model = self.vocabulary

        def text(token: int | None) -> str | None:
            return model.pieces[token].decode(errors="replace") if token is not None else None

        return ModelInfo(
            name=self.name,
            context=self.context,
            vocab_size=model.vocab_size,
            parameters=model.parameters,
            size_bytes=Path(self.settings.path).stat().st_size,
            fill_in_the_middle=model.fill_in_the_middle is not None,
            deterministic=self.exact,
            fingerprint=f"{model.lib.build.replace(' ', '-')}+{_file_hash(Path(self.settings.path))}{self._order}",
            add_bos=model.add_bos,
            description=model.description,
            bos_token=text(model.bos),
            eos_token=text(model.eos),
            pad_token=text(model.pad),
            chat_template=model.chat_template,
            longest_piece=model.longest_piece,
        )


class Models:
    """All configured models.

    Args:
        settings: what is configured.
        fail: called, in the engine's thread, with a job that can't go on and why.
        give_out: called, in the engine's thread, when jobs have events to give out.
        in_engine_thread: runs a function there and waits for it.
    """

    def __init__(
        self,
        settings: EngineSettings,
        fail: Callable[[Job, AndthenError], None],
        give_out: Callable[[], None],
        in_engine_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        self._settings = settings
        self._fail = fail
        self._give_out = give_out
        self._in_engine_thread = in_engine_thread
        self._threads = settings.threads or max(1, (os.cpu_count() or 2) - 1)
        self._bound = settings.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        self._lock = threading.Condition()
        self._known: dict[str, Known] = {}
        self._knowing = threading.Lock()
        self._loaded: OrderedDict[str, Runner] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._loading: set[str] = set()
        self._past = Counts()

    def know(self, name: str) -> Known:
        """The model's vocabulary and bounds; "" is the first configured one.

        Raises:
            ModelNotFound: no such name is configured.
            InternalError: its file can't be read.
        """
        name = name or next(iter(self._settings.models), "")
        settings = self._settings.models.get(name)
        if settings is None:
            raise ModelNotFound("There is no such local model: `GET /v1/models` lists the names.")
        with self._knowing:
            if name not in self._known:
                try:
                    self._known[name] = Known(name, settings, self._settings.max_sequences, self._settings.batch_tokens)
                except (LlamaError, OSError) as error:
                    _LOG.error("model_unreadable", model=name, reason=str(error))
                    raise InternalError(f"{name} can't be read: the server's log says why.") from error
            return self._known[name]

    def describe(self) -> list[ModelInfo]:
        """All models that can be read, in the configuration's order."""
        found = []
        for name in self._settings.models:
            try:
                found.append(self.know(name).info)
            except AndthenError:
                continue  # logged by know
        return found

    def pin(self, known: Known) -> Runner:
        """The model's runner, loaded if it was not; it stays until as many `unpin`.

        Raises:
            NoCapacity: the others are at work and leave no memory for it.
            InternalError: it can't be loaded.
        """
        name = known.name
        with self._lock:
            while name in self._loading:
                self._lock.wait()
            if name in self._loaded:
                self._loaded.move_to_end(name)
                self._pins[name] += 1
                return self._loaded[name]
            leaving = self._make_room(known)
            self._loading.add(name)
        try:
            for runner in leaving:
                self._in_engine_thread(runner.close)
                self._past.add(runner.counts)
            runner = self._load(known)
        except BaseException:
            with self._lock:
                self._loading.discard(name)
                self._lock.notify_all()
            raise
        with self._lock:
            self._loading.discard(name)
            self._loaded[name] = runner
            self._pins[name] = 1
            self._lock.notify_all()
        return runner

    def unpin(self, name: str) -> None:
        with self._lock:
            self._pins[name] -= 1

    @property
    def runners(self) -> list[Runner]:
        return list(self._loaded.values())

    def counts(self) -> Counts:
        """What all runners have done, those that were unloaded too."""
        total = Counts()
        for counts in [self._past, *(runner.counts for runner in self.runners)]:
            total.add(counts)
        return total

    def _make_room(self, known: Known) -> list[Runner]:
        """Takes idle models out of the list until the new one fits; they are to be closed."""
        if known.bytes_needed > self._bound:
            raise NoCapacity(
                f"{known.name} needs {known.bytes_needed} bytes, and `engine.memory_bytes` is {self._bound}: raise the "
                "setting or give the model fewer cells."
            )
        leaving = []
        in_use = [self._known[name].bytes_needed for name in [*self._loaded, *self._loading]]
        free = self._bound - sum(in_use)
        idle = [name for name in self._loaded if self._pins[name] == 0]
        if free + sum(self._known[name].bytes_needed for name in idle) < known.bytes_needed:
            raise NoCapacity(
                f"{known.name} does not fit beside the models that are at work: try again later.",
                retry_after_s=_LOAD_RETRY_AFTER_S,
            )
        for name in idle:
            if free >= known.bytes_needed:
                break
            free += self._known[name].bytes_needed
            leaving.append(self._loaded.pop(name))
            _LOG.info("model_unloaded", model=name)
        return leaving

    def _load(self, known: Known) -> Runner:
        try:
            model = Model(known.settings.path, gpu_layers=known.settings.gpu_layers)
            options = Options(known.bounds, known.context, self._threads, streams=known.streams, exact=known.exact)
            runner = Runner(model, known.vocabulary, options, self._fail, self._give_out)
        except LlamaError as error:
            _LOG.error("model_not_loaded", model=known.name, reason=str(error))
            raise InternalError(f"{known.name} can't be loaded: the server's log says why.") from error
        _LOG.info("model_loaded", model=known.name, cells=known.bounds.cells, bytes=known.bytes_needed)
        return runner


def _up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


def _file_hash(path: Path) -> str:
    """Of a file's size and its first and last MiB: what differs between models, in no time also for large ones."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, size - _HASHED_BYTES))
        digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()[:12]
