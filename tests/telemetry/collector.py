"""A collector on loopback that takes OTLP over HTTP, and does what a test wants of it instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 15


class Collector:
    """`status` is what it answers; while `held` is not set, it answers nothing."""

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each request that was answered with 200."""
        self.refused = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.held.wait()
                status = collector.status
                if status == 200:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    collector.taken.append((self.path, headers, body))
                else:
                    collector.refused += 1
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for path, _, body in list(self.taken)
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def trace(self, response_id: str, below: int = 0) -> tuple[Span, list[Span]]:
        """The server's span of a completion and what is below it, once they are here.

        Args:
            below: how many those are.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            spans = self.spans
            for span in spans:
                if attributes(span.attributes).get("gen_ai.response.id") == response_id:
                    children = [one for one in spans if one.parent_span_id == span.span_id]
                    if len(children) == below:
                        return span, sorted(children, key=lambda one: one.start_time_unix_nano)
            assert time.monotonic() < deadline, f"no span of {response_id} with {below} below it among {spans}"
            time.sleep(0.02)

    def points(self, name: str) -> dict[tuple[str, tuple[tuple[str, object], ...]], HistogramDataPoint]:
        """The last points of a histogram, by instance and attributes."""
        found = {}
        for instance, metric in self._metrics():
            if metric.name == name:
                for point in metric.histogram.data_points:
                    found[instance, tuple(sorted(attributes(point.attributes).items()))] = point
        return found

    def metrics(self) -> dict[str, Metric]:
        return {metric.name: metric for _, metric in self._metrics()}

    def resources(self) -> list[dict[str, object]]:
        """Of all that was taken."""
        requests = (
            ExportTraceServiceRequest.FromString(body).resource_spans
            if path == "/v1/traces"
            else ExportMetricsServiceRequest.FromString(body).resource_metrics
            for path, _, body in list(self.taken)
        )
        return [attributes(told.resource.attributes) for request in requests for told in request]

    def _metrics(self) -> Iterator[tuple[str, Metric]]:
        for path, _, body in list(self.taken):
            if path != "/v1/metrics":
                continue
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                instance = str(attributes(resource.resource.attributes)["service.instance.id"])
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        yield instance, metric


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    collector = Collector(port)
    try:
        yield collector
    finally:
        collector.close()


def attributes(pairs: Iterator[KeyValue]) -> dict[str, object]:
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    return getattr(value, str(kind))
