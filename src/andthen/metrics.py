"""What can be measured, and the one page that tells it for all processes. Knows no request and no engine: the others
call it. Nothing of a caller's text may become a label; a model's label is a configured name.

Every process of one server writes its numbers into memory-mapped files of its own in the run directory
(prometheus_client's multiprocess mode), and any of them prints the sum. The files are named by a process's place
("worker-0", "engine") and not by its number, so that a process that is started again goes on counting where its
predecessor was, and no file is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TOKEN_KINDS = ("prompt", "cached", "completion")
"""In the order of `Exchange.usage`."""

CACHE_OUTCOMES = ("hit", "miss", "bypass")

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PACE_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_OWN_S = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


Over = Literal["livesum", "livemin"]
"""How the gauges of several processes become one."""


class Row(Struct, frozen=True):
    """A metric before any process measures it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, but for the last."""
    over_processes: Over = "livesum"
    """What a gauge tells of several processes."""


_REQUESTS = Row(
    "andthen_requests_total",
    "counter",
    "Requests answered or given up; status 499 is a client that went away.",
    ("route", "status"),
)
_OPEN_REQUESTS = Row("andthen_open_requests", "gauge", "Requests in work.")
_REQUEST_SECONDS = Row(
    "andthen_request_seconds", "histogram", "From a request's headers to the end of its reply.", ("route",), _REQUEST_S
)
_QUEUE_SECONDS = Row(
    "andthen_queue_seconds",
    "histogram",
    "From a completion's headers to its turn in the engine, or to what a vendor tells first.",
    ("model",),
    _WAIT_S,
)
_FIRST_TEXT_SECONDS = Row(
    "andthen_first_text_seconds",
    "histogram",
    "From a completion's headers to its first generated token.",
    ("model",),
    _WAIT_S,
)
_BETWEEN_TEXTS_SECONDS = Row(
    "andthen_between_texts_seconds",
    "histogram",
    "From one batch of a completion's tokens to the next. The embedded engine makes a batch each step, with a token of "
    "each candidate; a vendor's batch is what comes at once.",
    ("model",),
    _PACE_S,
)
_OVERHEAD_SECONDS = Row(
    "andthen_overhead_seconds",
    "histogram",
    "What a completion took beyond its waits for the engine or the vendors and for its client: reading, limits, the "
    "ledger, writing. A wait that other requests' work makes longer counts as a wait.",
    ("model",),
    _OWN_S,
)
_TOKENS = Row(
    "andthen_tokens_total",
    "counter",
    "Tokens of completions as in their usage; kind is prompt, cached or completion.",
    ("model", "kind"),
)
_LEDGER_HEALTHY = Row(
    "andthen_ledger_healthy",
    "gauge",
    "1 while the ledger's database takes what every worker writes, else 0.",
    over_processes="livemin",
)
_UNRECORDED = Row(
    "andthen_unrecorded_requests_total",
    "counter",
    "Requests that were refused and cost nothing while the ledger's database took nothing, and have no row there; code "
    "is the error's, or `caller` where the caller went away.",
    ("code",),
)
_WORKERS = Row("andthen_workers", "gauge", "Processes that serve HTTP.")
_UNCOUNTED = Row(
    "andthen_uncounted_requests_total",
    "counter",
    "Requests of keys with limits that found no Redis to count them; answer is refused or admitted, as is set.",
    ("answer",),
)
_CACHE_REQUESTS = Row(
    "andthen_cache_requests_total",
    "counter",
    "Completions while the cache is on; outcome is hit, miss, or bypass for what was not looked for.",
    ("outcome",),
)
_CACHE_BYTES = Row("andthen_cache_bytes", "gauge", "What the workers' caches keep in memory.")
_DEATHS = Row(
    "andthen_process_deaths_total",
    "counter",
    "Processes that died unasked and were started again; process is engine or worker.",
    ("process",),
)
_ENGINE_COUNTERS = {
    "steps": Row("andthen_engine_steps_total", "counter", "Decoding steps that the engine did."),
    "prompt_tokens": Row("andthen_engine_prompt_tokens_total", "counter", "Prompt tokens that the engine was given."),
    "cached_tokens": Row(
        "andthen_engine_cached_tokens_total", "counter", "Prompt tokens that the prefix cache spared."
    ),
    "generated_tokens": Row("andthen_engine_generated_tokens_total", "counter", "Tokens that the engine generated."),
    "recomputed_tokens": Row(
        "andthen_engine_recomputed_tokens_total", "counter", "Tokens that the engine computed again after a preemption."
    ),
    "preemptions": Row(
        "andthen_engine_preemptions_total", "counter", "Sequences that gave up their place in the engine to others."
    ),
}
"""By what the engine calls them."""
_ENGINE_GAUGES = {
    "running": Row("andthen_engine_running", "gauge", "Sequences that run in the engine."),
    "waiting": Row("andthen_engine_waiting", "gauge", "Requests that wait in the engine for their turn."),
    "cells_used": Row("andthen_engine_cells_used", "gauge", "Cells in use of the loaded models' key-value pools."),
    "cells_total": Row("andthen_engine_cells", "gauge", "Cells that the loaded models' key-value pools have."),
}
ROWS = (
    _REQUESTS,
    _OPEN_REQUESTS,
    _REQUEST_SECONDS,
    _QUEUE_SECONDS,
    _FIRST_TEXT_SECONDS,
    _BETWEEN_TEXTS_SECONDS,
    _OVERHEAD_SECONDS,
    _TOKENS,
    _LEDGER_HEALTHY,
    _UNRECORDED,
    _WORKERS,
    _UNCOUNTED,
    _CACHE_REQUESTS,
    _CACHE_BYTES,
    _DEATHS,
    *_ENGINE_COUNTERS.values(),
    *_ENGINE_GAUGES.values(),
)
"""Every metric there is."""


def join(run_dir: Path, place: str) -> None:
    """From now on this process's metrics are written for all to read. To be called before any metric is made.

    Args:
        run_dir: the directory that all processes of this server share.
        place: which of them this is; unique among the living, and without "_".
    """
    for kind in ("counter", "histogram", *(f"gauge_{mode}" for mode in get_args(Over))):
        _reserve(run_dir / f"{kind}_{place}.db")
    os.environ[_DIRECTORY_VARIABLE] = str(run_dir)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: place)  # type: ignore[no-untyped-call]


_ROOM_BYTES = 1 << 20
"""Of each file: some 8,000 values. What needs more grows."""


def _reserve(path: Path) -> None:
    """Makes one of prometheus_client's files with all its room: it maps files with holes in them, and whoever writes
    into a hole while the disk is full is ended by SIGBUS (prometheus_client 0.26, `mmap_dict.py`)."""
    with suppress(FileExistsError), path.open("xb") as file:
        file.write(bytes(_ROOM_BYTES))


def forget(run_dir: Path, place: str) -> None:
    """A process died: its gauges no longer hold. What it counted stays counted."""
    multiprocess.mark_process_dead(place, str(run_dir))  # type: ignore[no-untyped-call]


def exposition(registry: CollectorRegistry) -> bytes:
    """The page for Prometheus: of all processes after `join`, else of this registry alone."""
    if _DIRECTORY_VARIABLE in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class ServerMetrics:
    """What a worker measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = _counter(_REQUESTS, registry)
        self.open_requests = _gauge(_OPEN_REQUESTS, registry)
        self.request_seconds = _histogram(_REQUEST_SECONDS, registry)
        self.uncounted = _counter(_UNCOUNTED, registry)
        cache_requests = _counter(_CACHE_REQUESTS, registry)
        self.cache_requests = {outcome: cache_requests.labels(outcome) for outcome in CACHE_OUTCOMES}
        self.cache_bytes = _gauge(_CACHE_BYTES, registry)
        self.cache_bytes.set(0)
        self.open_requests.set(0)
        _gauge(_WORKERS, registry).set(1)
        self._ledger_healthy = _gauge(_LEDGER_HEALTHY, registry)
        self.note_ledger(True)
        self._unrecorded = _counter(_UNRECORDED, registry)
        self._tokens = _counter(_TOKENS, registry)
        self._by_model = [
            _histogram(row, registry)
            for row in (_QUEUE_SECONDS, _FIRST_TEXT_SECONDS, _BETWEEN_TEXTS_SECONDS, _OVERHEAD_SECONDS)
        ]
        self._models: dict[str, ModelMetrics] = {}

    def model(self, name: str) -> ModelMetrics:
        """Those of one model, kept: a look-up by labels costs more than the count.

        Args:
            name: a configured one, as `Catalog.label` tells it.
        """
        found = self._models.get(name)
        if found is None:
            tokens = tuple(self._tokens.labels(name, kind) for kind in TOKEN_KINDS)
            found = self._models[name] = ModelMetrics(tokens, *(metric.labels(name) for metric in self._by_model))
        return found

    def note_ledger(self, healthy: bool) -> None:
        """Whether the ledger's database took what was written last."""
        self._ledger_healthy.set(healthy)

    def count_unrecorded(self, code: str) -> None:
        """A request that has no row in the ledger, and why it was refused."""
        self._unrecorded.labels(code).inc()


class ModelMetrics(NamedTuple):
    """What a worker measures of one model's completions."""

    tokens: tuple[Counter, ...]
    """Of each of `TOKEN_KINDS`."""
    queue_seconds: Histogram
    first_text_seconds: Histogram
    between_texts_seconds: Histogram
    overhead_seconds: Histogram

    def count_tokens(self, usage: tuple[int, ...]) -> None:
        """Args:
        usage: tokens of each of `TOKEN_KINDS`.
        """
        for counter, tokens in zip(self.tokens, usage, strict=True):
            counter.inc(tokens)


class SupervisorMetrics:
    """What the supervising process measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deaths = _counter(_DEATHS, registry)


class EngineMetrics:
    """What the engine tells of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = [(name, _counter(row, registry)) for name, row in _ENGINE_COUNTERS.items()]
        self._gauges = [(name, _gauge(row, registry)) for name, row in _ENGINE_GAUGES.items()]
        self._counted: dict[str, float] = {}

    def update(self, stats: Mapping[str, float]) -> None:
        """Takes over the engine's counts since its start and its present values. What is not told is 0."""
        for name, counter in self._counters:
            now = stats.get(name, 0.0)
            counter.inc(max(0.0, now - self._counted.get(name, 0.0)))  # less: a model was unloaded
            self._counted[name] = now
        for name, gauge in self._gauges:
            gauge.set(stats.get(name, 0.0))


def metrics_markdown() -> str:
    """The table of all metrics, for the documentation."""
    lines = ["| metric | kind | labels | what |", "|---|---|---|---|"]
    for row in ROWS:
        labels = ", ".join(f"`{label}`" for label in row.labels) or "–"
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.text} |")
    return "\n".join(lines) + "\n"


def _counter(row: Row, registry: CollectorRegistry) -> Counter:
    return Counter(row.name, row.text, row.labels, registry=registry)


def _gauge(row: Row, registry: CollectorRegistry) -> Gauge:
    return Gauge(row.name, row.text, row.labels, registry=registry, multiprocess_mode=row.over_processes)


def _histogram(row: Row, registry: CollectorRegistry) -> Histogram:
    return Histogram(row.name, row.text, row.labels, registry=registry, buckets=row.buckets_s)
