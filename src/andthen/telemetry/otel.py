"""Tells an OpenTelemetry collector of completions, by the conventions for generative AI. The only file that knows the
SDK.

A completion is told once it is over: a span of the server, below it one for each call to a vendor or job of the
embedded engine, and the conventions' histograms. All is put into bounded queues that threads of the SDK empty, so a
collector that is slow or gone costs what is in them and no request anything. The log says once when the collector does
not take something and once when it does again.

The names are those of https://github.com/open-telemetry/semantic-conventions-genai, `docs/gen-ai/gen-ai-spans.md` and
`gen-ai-metrics.md`, read 2026-11-23; they are still under development there. `gen_ai.request.stop_sequences` is left
out, for it is the caller's text.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from andthen import __version__
from andthen.contract.events import Exchange, Usage
from andthen.telemetry.notes import Answerer, Ending, Note
from andthen.telemetry.settings import TelemetrySettings

Attributes = dict[str, str | bool | int | float | Sequence[str]]

OPERATION = "text_completion"

DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4.0**power for power in range(14))
"""The conventions' boundaries of buckets."""

_CLOSE_WITHIN_S = 3.0

_LOG = structlog.get_logger("andthen.telemetry")


class Telemetry:
    """`async with Telemetry(settings, place) as telemetry:`; leaving sends what is left, for at most 3 s.

    Args:
        place: this process's name among those of its server.
    """

    def __init__(self, settings: TelemetrySettings, place: str) -> None:
        resource = _resource(settings, place)
        self._traces = _traces(settings, resource) if settings.traces else None
        self._metrics = _metrics(settings, resource) if settings.metrics else None
        self._spans = None if self._traces is None else _Spans(self._traces.get_tracer("andthen", __version__))
        self._measures = None if self._metrics is None else _Measures(self._metrics.get_meter("andthen", __version__))
        # It tells of each try that fails, of each signal, in each process. What matters of it, `_Reach` tells.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The SDK would wait for half a minute; its threads are daemons, and so are these.
        closing = [
            threading.Thread(target=provider.shutdown, name="telemetry-close", daemon=True)
            for provider in (self._traces, self._metrics)
            if provider is not None
        ]
        for thread in closing:
            thread.start()
        due_s = time.monotonic() + _CLOSE_WITHIN_S
        for thread in closing:
            await asyncio.to_thread(thread.join, max(0.0, due_s - time.monotonic()))

    def tell(self, note: Note, ending: Ending) -> None:
        """A completion is over."""
        if self._spans is not None:
            self._spans.tell(note, ending)
        if self._measures is not None and note.answerer is not None:
            self._measures.tell(note, note.answerer, ending)


class _Spans:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def tell(self, note: Note, ending: Ending) -> None:
        zero_ns = time.time_ns() - time.monotonic_ns()

        def at_ns(at_s: float) -> int:
            return zero_ns + round(at_s * 1e9)

        span = self._tracer.start_span(
            f"{OPERATION} {note.asked}".rstrip(),
            self._propagator.extract({"traceparent": ending.traceparent}),
            SpanKind.SERVER,
            _of_request(note, ending),
            start_time=at_ns(ending.started_s),
        )
        if ending.code and not 400 <= ending.status < 500:
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span)
        for answerer, exchange in note.exchanges:
            call = self._tracer.start_span(
                f"{OPERATION} {answerer.model}",
                below,
                SpanKind.CLIENT if answerer.host else SpanKind.INTERNAL,
                _of_exchange(answerer, exchange),
                start_time=at_ns(exchange.began_s),
            )
            if exchange.code:
                call.set_status(Status(StatusCode.ERROR))
            call.end(at_ns(exchange.began_s + exchange.took_s))
        span.end(at_ns(ending.ended_s))


class _Measures:
    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=bounds)

        self._request = seconds("gen_ai.server.request.duration", DURATION_S)
        self._first_token = seconds("gen_ai.server.time_to_first_token", FIRST_TOKEN_S)
        self._per_token = seconds("gen_ai.server.time_per_output_token", PER_TOKEN_S)
        self._call = seconds("gen_ai.client.operation.duration", DURATION_S)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=TOKENS
        )

    def tell(self, note: Note, answerer: Answerer, ending: Ending) -> None:
        took_s = ending.ended_s - ending.started_s
        attributes = _of_answerer(answerer) | {"gen_ai.request.model": note.asked}
        self._request.record(took_s, attributes | _of_error(ending.code))
        if note.first_text_s is not None and ending.status == 200 and not ending.code:
            self._first_token.record(note.first_text_s, attributes)
            if note.usage is not None and note.usage.completion_tokens > 1:
                per_token_s = (took_s - note.first_text_s) / (note.usage.completion_tokens - 1)
                self._per_token.record(per_token_s, attributes)
        for called, exchange in note.exchanges:
            own = _of_answerer(called)
            self._call.record(exchange.took_s, own | _of_error(exchange.code))
            self._tokens.record(exchange.usage.prompt_tokens, own | {"gen_ai.token.type": "input"})
            self._tokens.record(exchange.usage.completion_tokens, own | {"gen_ai.token.type": "output"})


def _of_request(note: Note, ending: Ending) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.response.id": ending.id,
        "http.request.method": "POST",
        "http.response.status_code": ending.status,
        **_of_error(ending.code),
    }
    if (request := note.request) is not None:
        attributes |= {
            "gen_ai.request.model": note.asked,
            "gen_ai.request.stream": request.stream,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.frequency_penalty": request.frequency_penalty,
            "gen_ai.request.presence_penalty": request.presence_penalty,
        }
        if request.n != 1:
            attributes["gen_ai.request.choice.count"] = request.n
        if request.seed is not None:
            attributes["gen_ai.request.seed"] = request.seed
        if request.top_k > 0:
            attributes["gen_ai.request.top_k"] = request.top_k
    if note.answerer is not None:
        attributes |= {"gen_ai.provider.name": note.answerer.provider, "gen_ai.response.model": note.answerer.model}
    if note.first_text_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = note.first_text_s
    if note.reasons:
        attributes["gen_ai.response.finish_reasons"] = note.reasons
    return attributes if note.usage is None else attributes | _of_usage(note.usage)


def _of_exchange(answerer: Answerer, exchange: Exchange) -> Attributes:
    attributes = _of_answerer(answerer) | _of_usage(exchange.usage) | _of_error(exchange.code)
    if answerer.host and exchange.status:
        attributes["http.response.status_code"] = exchange.status
    return attributes


def _of_answerer(answerer: Answerer) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": answerer.provider,
        "gen_ai.request.model": answerer.model,
        "gen_ai.response.model": answerer.model,
    }
    return attributes | {"server.address": answerer.host, "server.port": answerer.port} if answerer.host else attributes


def _of_usage(usage: Usage) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or 0,
    }


def _of_error(code: str) -> Attributes:
    return {"error.type": code} if code else {}


class _Reach:
    """Tells the log when a collector goes and when it comes back, and no more often."""

    def __init__(self, signal: str) -> None:
        self._signal = signal
        self._there = True

    def note(self, there: bool) -> None:
        if there and not self._there:
            _LOG.info("telemetry_back", signal=self._signal)
        elif not there and self._there:
            _LOG.warning("telemetry_unavailable", signal=self._signal)
        self._there = there


class _SpanExporter(OTLPSpanExporter):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint=endpoint)
        self._reach = _Reach("traces")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self._reach.note(result is SpanExportResult.SUCCESS)
        return result


class _MetricExporter(OTLPMetricExporter):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint=endpoint)
        self._reach = _Reach("metrics")

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **more: object
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **more)
        self._reach.note(result is MetricExportResult.SUCCESS)
        return result


def _resource(settings: TelemetrySettings, place: str) -> Resource:
    name = settings.service_name or OTELResourceDetector().detect().attributes.get("service.name") or "andthen"
    return Resource.create({
        "service.name": name,
        "service.version": __version__,
        # Whatever the environment says: the sums of two workers must not be taken for those of one.
        "service.instance.id": f"{socket.gethostname()}-{place}-{secrets.token_hex(4)}",
    })  # fmt: skip


def _traces(settings: TelemetrySettings, resource: Resource) -> TracerProvider:
    # Without a sampler, the SDK looks at its variables.
    sampler = None if settings.sample_ratio is None else ParentBasedTraceIdRatio(settings.sample_ratio)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_SpanExporter(_below(settings, "v1/traces"))))
    return provider


def _metrics(settings: TelemetrySettings, resource: Resource) -> MeterProvider:
    reader = PeriodicExportingMetricReader(_MetricExporter(_below(settings, "v1/metrics")))
    return MeterProvider([reader], resource, shutdown_on_exit=False)


def _below(settings: TelemetrySettings, path: str) -> str:
    return f"{settings.endpoint.removesuffix('/')}/{path}"
