"""The metrics, and the page that shows them for all processes of a server.

Nothing of a caller's text may become a label; a model's label is a configured name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from andthen.observability.metric_store import Histogram, Key, Metric, MetricStore, Series, mark_dead, read_all

if TYPE_CHECKING:
    from prometheus_client.core import Metric as PrometheusMetric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TOKEN_KINDS = ("prompt", "cached", "completion")
"""In the order of `Exchange.usage`."""

CACHE_OUTCOMES = ("hit", "miss", "bypass")

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PACE_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_OWN_S = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


_REQUESTS = Metric(
    "andthen_requests_total",
    "counter",
    "Requests answered or given up; status 499 is a client that went away.",
    ("route", "status"),
)
_OPEN_REQUESTS = Metric("andthen_open_requests", "gauge", "Requests in work.")
_REQUEST_SECONDS = Metric(
    "andthen_request_seconds", "histogram", "From a request's headers to the end of its reply.", ("route",), _REQUEST_S
)
_QUEUE_SECONDS = Metric(
    "andthen_queue_seconds",
    "histogram",
    "From a completion's headers to its turn in the engine, or to what a vendor tells first.",
    ("model",),
    _WAIT_S,
)
_FIRST_TEXT_SECONDS = Metric(
    "andthen_first_text_seconds",
    "histogram",
    "From a completion's headers to its first generated token.",
    ("model",),
    _WAIT_S,
)
_BETWEEN_TEXTS_SECONDS = Metric(
    "andthen_between_texts_seconds",
    "histogram",
    "From one batch of a completion's tokens to the next. The embedded engine makes a batch each step, with a token of "
    "each candidate; a vendor's batch is what comes at once.",
    ("model",),
    _PACE_S,
)
_OVERHEAD_SECONDS = Metric(
    "andthen_overhead_seconds",
    "histogram",
    "What a completion took beyond its waits for the engine or the vendors and for its client: reading, limits, the "
    "ledger, writing. A wait that other requests' work makes longer counts as a wait.",
    ("model",),
    _OWN_S,
)
_TOKENS = Metric(
    "andthen_tokens_total",
    "counter",
    "Tokens of completions as in their usage; kind is prompt, cached or completion.",
    ("model", "kind"),
)
_LEDGER_HEALTHY = Metric(
    "andthen_ledger_healthy",
    "gauge",
    "1 while the ledger's database takes what every worker writes, else 0.",
    over_processes="min",
)
_UNRECORDED = Metric(
    "andthen_unrecorded_requests_total",
    "counter",
    "Requests that were refused and cost nothing while the ledger's database took nothing, and have no row there; code "
    "is the error's, or `caller` where the caller went away.",
    ("code",),
)
_WORKERS = Metric("andthen_workers", "gauge", "Processes that serve HTTP.")
_UNCOUNTED = Metric(
    "andthen_uncounted_requests_total",
    "counter",
    "Requests of keys with limits that found no Redis to count them; answer is refused or admitted, as is set.",
    ("answer",),
)
_CACHE_REQUESTS = Metric(
    "andthen_cache_requests_total",
    "counter",
    "Completions while the cache is on; outcome is hit, miss, or bypass for what was not looked for.",
    ("outcome",),
)
_CACHE_BYTES = Metric("andthen_cache_bytes", "gauge", "What the workers' caches keep in memory.")
_DEATHS = Metric(
    "andthen_process_deaths_total",
    "counter",
    "Processes that died unasked and were started again; process is engine or worker.",
    ("process",),
)
_ENGINE_COUNTERS = {
    "steps": Metric("andthen_engine_steps_total", "counter", "Decoding steps that the engine did."),
    "prompt_tokens": Metric(
        "andthen_engine_prompt_tokens_total", "counter", "Prompt tokens that the engine was given."
    ),
    "cached_tokens": Metric(
        "andthen_engine_cached_tokens_total", "counter", "Prompt tokens that the prefix cache spared."
    ),
    "recomputed_tokens": Metric(
        "andthen_engine_recomputed_tokens_total", "counter", "Tokens that the engine computed again after a preemption."
    ),
    "preemptions": Metric(
        "andthen_engine_preemptions_total", "counter", "Sequences that gave up their place in the engine to others."
    ),
    "generated_tokens": Metric("andthen_engine_generated_tokens_total", "counter", "Tokens that the engine generated."),
}
"""By the engine's own names for them."""
_ENGINE_GAUGES = {
    "running": Metric("andthen_engine_running", "gauge", "Sequences that run in the engine."),
    "waiting": Metric("andthen_engine_waiting", "gauge", "Requests that wait in the engine for their turn."),
    "cells_used": Metric("andthen_engine_cells_used", "gauge", "Cells in use of the loaded models' key-value pools."),
    "cells_total": Metric("andthen_engine_cells", "gauge", "Cells that the loaded models' key-value pools have."),
}
METRICS = (
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


_BY_NAME = {metric.name: metric for metric in METRICS}


def private_store() -> MetricStore:
    """A store in this process's memory alone."""
    return MetricStore(None, _BY_NAME)


def shared_store(run_dir: Path, place: str) -> MetricStore:
    """This process's store among those of a server. See `MetricStore.shared`."""
    return MetricStore.shared(run_dir, place, _BY_NAME)


def process_died(run_dir: Path, place: str) -> None:
    """Its gauges no longer count. Its counters do."""
    mark_dead(run_dir, place)


def exposition(store: MetricStore | Path) -> bytes:
    """The page for Prometheus.

    Args:
        store: one process's store, or the folder that the stores of all processes are in.
    """
    from prometheus_client import CollectorRegistry, generate_latest  # most processes never print the page

    found = read_all(store, _BY_NAME) if isinstance(store, Path) else store.read(_BY_NAME)
    return generate_latest(cast(CollectorRegistry, _Sums(found)))  # of the registry it calls `collect` only


class _Sums:
    """The series of several processes, added up."""

    def __init__(self, found: Iterable[tuple[Key, tuple[float, ...]]]) -> None:
        self._series: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {name: {} for name in _BY_NAME}
        for (name, labels), values in found:
            combine = min if _BY_NAME[name].over_processes == "min" else sum
            known = self._series[name].get(labels)
            if known is not None:
                values = tuple(map(combine, zip(known, values, strict=True)))
            self._series[name][labels] = values

    def collect(self) -> Iterator[PrometheusMetric]:
        for metric in METRICS:
            yield _family(metric, self._series[metric.name])


def _family(metric: Metric, series: Mapping[tuple[str, ...], tuple[float, ...]]) -> PrometheusMetric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        bounds = [*map(str, metric.buckets_s), "+Inf"]
        for labels, (*counts, total) in sorted(series.items()):
            histogram.add_metric(labels, [*zip(bounds, accumulate(counts), strict=True)], total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=metric.labels)
    for labels, (value,) in sorted(series.items()):
        family.add_metric(labels, value)
    return family


class ServerMetrics:
    """What a worker measures."""

    def __init__(self, store: MetricStore) -> None:
        self.store = store
        self.open_requests = store.series(_OPEN_REQUESTS)
        self.uncounted = {answer: store.series(_UNCOUNTED, answer) for answer in ("refused", "admitted")}
        self.cache_requests = {outcome: store.series(_CACHE_REQUESTS, outcome) for outcome in CACHE_OUTCOMES}
        self.cache_bytes = store.series(_CACHE_BYTES)
        store.series(_WORKERS).set(1)
        self._ledger_healthy = store.series(_LEDGER_HEALTHY)
        self.set_ledger_healthy(True)
        self._requests: dict[tuple[str, int], tuple[Series, Histogram]] = {}
        self._models: dict[str, ModelMetrics] = {}

    def count_request(self, route: str, status: int, took_s: float) -> None:
        """A request is over."""
        found = self._requests.get((route, status))
        if found is None:
            found = self._requests[route, status] = (
                self.store.series(_REQUESTS, route, str(status)),
                self.store.histogram(_REQUEST_SECONDS, route),
            )
        found[0].inc()
        found[1].observe(took_s)

    def model(self, name: str) -> ModelMetrics:
        """Those of one model.

        Args:
            name: a configured one: see `Deployment.label`.
        """
        found = self._models.get(name)
        if found is None:
            histograms = (_QUEUE_SECONDS, _FIRST_TEXT_SECONDS, _BETWEEN_TEXTS_SECONDS, _OVERHEAD_SECONDS)
            found = self._models[name] = ModelMetrics(
                tuple(self.store.series(_TOKENS, name, kind) for kind in TOKEN_KINDS),
                *(self.store.histogram(metric, name) for metric in histograms),
            )
        return found

    def set_ledger_healthy(self, healthy: bool) -> None:
        """Whether the ledger's database took what was written last."""
        self._ledger_healthy.set(healthy)

    def count_unrecorded(self, code: str) -> None:
        """A request has no row in the ledger.

        Args:
            code: why it was refused.
        """
        self.store.series(_UNRECORDED, code).inc()


class ModelMetrics(NamedTuple):
    """What a worker measures of one model's completions."""

    tokens: tuple[Series, ...]
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

    def __init__(self, store: MetricStore) -> None:
        self._deaths = {process: store.series(_DEATHS, process) for process in ("engine", "worker")}

    def count_death(self, process: str) -> None:
        """A process died and is started again."""
        self._deaths[process].inc()


class EngineMetrics:
    """The engine's own counts."""

    def __init__(self, store: MetricStore) -> None:
        self._counters = [(name, store.series(metric)) for name, metric in _ENGINE_COUNTERS.items()]
        self._gauges = [(name, store.series(metric)) for name, metric in _ENGINE_GAUGES.items()]
        self._counted: dict[str, float] = {}

    def update(self, stats: Mapping[str, float]) -> None:
        """Takes over the engine's counts since its start and its present values; what is missing is 0."""
        for name, counter in self._counters:
            now = stats.get(name, 0.0)
            counter.inc(max(0.0, now - self._counted.get(name, 0.0)))  # less: a model was unloaded
            self._counted[name] = now
        for name, gauge in self._gauges:
            gauge.set(stats.get(name, 0.0))


def metrics_markdown() -> str:
    """The table of all metrics, for the documentation."""
    lines = ["| metric | kind | labels | what |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |")
    return "\n".join(lines) + "\n"
