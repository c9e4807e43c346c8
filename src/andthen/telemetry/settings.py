"""What the operator may set about telemetry. Knows no file and no environment variable."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class TelemetrySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces and metrics for an OpenTelemetry collector; the extra `otel` brings the SDK. Never with anything of a
    prompt, a completion or a key. The SDK's own variables say the rest: `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`,
    `_COMPRESSION`, `_CERTIFICATE`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_…`, `OTEL_METRIC_EXPORT_INTERVAL`,
    `OTEL_SDK_DISABLED`."""

    endpoint: str = ""
    """The base of the collector's addresses for OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` and
    `/v1/metrics` are below it. Unset: no telemetry."""
    traces: bool = True
    """Whether it gets traces."""
    metrics: bool = True
    """Whether it gets metrics."""
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    """The share of requests that are traced, of those whose caller sends no `traceparent`; the others go by what it
    says. Unset: `OTEL_TRACES_SAMPLER`, else all."""
    service_name: str = ""
    """What the server is called there. Unset: `OTEL_SERVICE_NAME`, else `andthen`."""
