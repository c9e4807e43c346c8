"""A real server before a real receiver of OTLP: what it is told, what not, and what its failures cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.books.limiting import free_port
from tests.server.running import COMPLETIONS, Running, read_all, read_until, running
from tests.telemetry.collector import Collector, attributes, collecting
from tests.upstream.vendor import Playing, Sent, choice, completion, json_reply

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRETS = (
    "a-prompt",
    "a-completion",
    "a-stop",
    "a-user",
    "a-suffix",
    "KEY-OF-OURS",
    "a-vendor-state",
    "of-the-collector",
)


class Play:
    """`busy` the first time, `broken` always; else a completion."""

    def __init__(self) -> None:
        self.was_busy = False

    async def __call__(self, sent: Sent) -> AsyncIterator[bytes]:
        word = sent.body["prompt"].split()[0]
        if word == "broken":
            yield json_reply({"error": {"message": "a-completion is broken"}}, 500)
        elif word == "busy" and not self.was_busy:
            self.was_busy = True
            yield json_reply({"error": {"message": "busy"}}, 503)
        else:
            yield json_reply(completion(choice(" a-completion", reason="stop"), usage=(7, 2)))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def vendor() -> Iterator[Playing]:
    with closing(Playing(Play())) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector, vendor: Playing) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        at_once(patch)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer of-the-collector")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=shared")
        with running(tmp_path_factory.mktemp("told"), settings(collector.port, "workers = 2", vendor)) as server:
            server.until(lambda: len(server.events("serving")) == 2, "both serve")
            yield server


def at_once(patch: pytest.MonkeyPatch) -> None:
    """By the SDK's own variables."""
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")


def settings(port: int, more: str = "", vendor: Playing | None = None, telemetry: str = "") -> str:
    model = (
        ""
        if vendor is None
        else f"""
[models."team/m"]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"
model = "m"
key = "KEY-OF-OURS"

[models."team/alias"]
alias = "team/m"

[vendors.mine]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"
"""
    )
    return f'{more}\n[telemetry]\nendpoint = "http://127.0.0.1:{port}/"\n{telemetry}\n{model}'


def completed(server: Running, prompt: str = "go", traceparent: str | None = None, **fields: object) -> str:
    """A completion's id, or a refused request's."""
    body = {"model": "local/count", "prompt": prompt} | fields
    return server.ask("POST", COMPLETIONS, body, traceparent=traceparent).headers["x-request-id"]


def streamed_id(received: bytes) -> str:
    return received.split(b'"id":"')[1].split(b'"')[0].decode()


def test_a_completion_of_a_vendor_is_a_span_with_its_call_below(
    server: Running, collector: Collector, vendor: Playing
) -> None:
    made = completed(
        server, "go", TRACEPARENT, model="team/alias", max_tokens=5, temperature=0.5, top_p=0.25, seed=7,
        frequency_penalty=0.1, presence_penalty=0.2, stop=["a-stop"],
    )  # fmt: skip
    span, (call,) = collector.trace(made, below=1)
    assert (span.name, span.kind) == ("text_completion team/alias", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(span.attributes)
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "team",
        "gen_ai.request.model": "team/alias",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.25,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.response.id": made,
        "gen_ai.response.model": "team/m",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert (call.name, call.kind) == ("text_completion team/m", Span.SPAN_KIND_CLIENT)
    assert (call.trace_id, call.parent_span_id) == (span.trace_id, span.span_id)
    assert attributes(call.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "team",
        "gen_ai.request.model": "team/m",
        "gen_ai.response.model": "team/m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": vendor.port,
    }
    starts, ends = (
        (span.start_time_unix_nano, call.start_time_unix_nano),
        (call.end_time_unix_nano, span.end_time_unix_nano),
    )
    assert starts[0] < starts[1] < ends[0] < ends[1]
    assert {span.status.code, call.status.code} == {Status.STATUS_CODE_UNSET}
    assert not {"traceparent", "tracestate"} & vendor.vendor.sent[-1].headers.keys()


def test_a_completion_of_the_engine_is_a_span_with_its_job_below(server: Running, collector: Collector) -> None:
    made = completed(server, n=2, max_tokens=3, stream=True, top_k=4)
    span, (job,) = collector.trace(made, below=1)
    told = attributes(span.attributes)
    assert (told["gen_ai.request.choice.count"], told["gen_ai.request.top_k"]) == (2, 4)
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert told["gen_ai.provider.name"] == "andthen"
    assert (job.name, job.kind) == ("text_completion local/count", Span.SPAN_KIND_INTERNAL)
    assert attributes(job.attributes)["gen_ai.usage.output_tokens"] == 6
    assert "server.address" not in attributes(job.attributes)


def test_a_completion_under_an_idempotency_key_is_told_once_and_its_repetition_without_work(
    server: Running, collector: Collector
) -> None:
    body = {"model": "local/count", "prompt": "go", "max_tokens": 3}
    first, again = (server.ask("POST", COMPLETIONS, body, idempotency_key="once").headers for _ in range(2))
    span, _ = collector.trace(first["x-request-id"], below=1)
    assert attributes(span.attributes)["gen_ai.usage.output_tokens"] == 3
    span, _ = collector.trace(again["x-request-id"])
    assert "gen_ai.usage.output_tokens" not in attributes(span.attributes)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        TRACEPARENT.upper(),
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{TRACEPARENT}-more",
        f"{TRACEPARENT}\xe4",
    ],
)
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(
    server: Running, collector: Collector, traceparent: str
) -> None:
    span, _ = collector.trace(completed(server, traceparent=traceparent), below=1)
    assert not span.parent_span_id
    assert span.trace_id.hex() != TRACE


def test_what_the_caller_does_not_trace_is_not_traced(server: Running, collector: Collector) -> None:
    untraced = completed(server, traceparent=f"00-{TRACE}-{PARENT}-00")
    collector.trace(completed(server), below=1)
    assert untraced not in [attributes(span.attributes).get("gen_ai.response.id") for span in collector.spans]


def test_each_call_of_a_retried_completion_is_told(server: Running, collector: Collector) -> None:
    span, calls = collector.trace(completed(server, "busy", model="team/m"), below=2)
    assert [attributes(call.attributes).get("error.type") for call in calls] == ["no_capacity", None]
    assert [attributes(call.attributes)["http.response.status_code"] for call in calls] == [503, 200]
    assert [call.status.code for call in calls] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_a_failure_is_told_by_its_code_and_a_callers_fault_is_no_error_of_the_server(
    server: Running, collector: Collector
) -> None:
    failed, calls = collector.trace(completed(server, "broken", model="team/m"), below=3)
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed.attributes)["error.type"] == "upstream_failed"
    assert {attributes(call.attributes)["error.type"] for call in calls} == {"upstream_failed"}
    refused, _ = collector.trace(completed(server, model="team/unknown"))
    assert (refused.name, refused.status.code) == ("text_completion", Status.STATUS_CODE_UNSET)
    assert attributes(refused.attributes)["error.type"] == "model_not_found"
    with server.sent("break", max_tokens=9, stream=True) as client:
        broken, _ = collector.trace(streamed_id(read_all(client)))
    assert attributes(broken.attributes)["http.response.status_code"] == 200
    assert (attributes(broken.attributes)["error.type"], broken.status.code) == (
        "internal_error",
        Status.STATUS_CODE_ERROR,
    )


def test_a_caller_who_leaves_is_told_as_that(server: Running, collector: Collector) -> None:
    with server.sent("slow", f"traceparent: 00-{TRACE}-{'c' * 16}-01", stream=True, max_tokens=1000) as client:
        made = streamed_id(read_until(client, b'" 2"'))
    span, _ = collector.trace(made, below=1)
    assert attributes(span.attributes)["http.response.status_code"] == 499
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_who_has_no_key_is_not_told_of(server: Running, collector: Collector) -> None:
    refused = server.ask("POST", COMPLETIONS, {"model": "local/count"}, x_api_key="sk-wrong").headers["x-request-id"]
    listed = server.ask("GET", "/v1/models").headers["x-request-id"]
    collector.trace(completed(server), below=1)
    told = [attributes(span.attributes).get("gen_ai.response.id") for span in collector.spans]
    assert refused not in told
    assert listed not in told


def test_metrics_have_the_conventions_names_and_buckets(server: Running, collector: Collector) -> None:
    completed(server, model="team/m")
    completed(server, max_tokens=3)
    server.until(lambda: len(collector.metrics()) == len(BOUNDS), "all are told")
    for name, bounds in BOUNDS.items():
        metric = collector.metrics()[name]
        assert metric.unit == ("{token}" if "token.usage" in name else "s"), name
        assert {tuple(point.explicit_bounds) for point in metric.histogram.data_points} == {bounds}, name
    wanted = {
        "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model",
        "gen_ai.token.type", "server.address", "server.port",
    }  # fmt: skip

    def keys() -> set[str]:
        return {key for (_, pairs) in collector.points("gen_ai.client.token.usage") for key, _ in pairs}

    server.until(lambda: keys() == wanted, "the call of the vendor is told as well")


BOUNDS = {
    "gen_ai.server.request.duration": (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    ),
    "gen_ai.client.operation.duration": (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    ),
    "gen_ai.server.time_to_first_token": (
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ),
    "gen_ai.server.time_per_output_token": (
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    ),
    "gen_ai.client.token.usage": (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    ),
}  # fmt: skip
"""As docs/gen-ai/gen-ai-metrics.md of the conventions has them."""


def test_the_sums_of_all_workers_are_all_requests(server: Running, collector: Collector) -> None:
    def counted() -> int:
        points = collector.points("gen_ai.server.request.duration")
        return sum(point.count for (_, pairs), point in points.items() if ("error.type", "no_capacity") in pairs)

    for _ in range(20):
        completed(server, "refuse")
    server.until(lambda: counted() == 20, "all are told")
    resources = collector.resources()
    assert {resource["service.name"] for resource in resources} == {"andthen"}
    assert {resource["deployment.environment.name"] for resource in resources} == {"test"}
    instances = {str(resource["service.instance.id"]) for resource in resources}
    assert len(instances) == 2, "each worker is an instance, whatever the environment says of them together"


def test_nothing_of_a_prompt_a_completion_or_a_key_is_told(server: Running, collector: Collector) -> None:
    body = {"prompt": "go a-prompt", "stop": ["a-stop"], "user": "a-user", "suffix": "a-suffix", "max_tokens": 3}
    headers = {"tracestate": "a-vendor-state=1", "baggage": "a-user=1", "traceparent": TRACEPARENT}
    for model in ("local/count", "team/m", "mine/a-prompt", "team/a-prompt", "a-prompt"):
        server.ask("POST", COMPLETIONS, body | {"model": model}, **headers)
        server.ask("POST", COMPLETIONS, body | {"model": model, "prompt": "broken a-prompt"}, **headers)
    span, (call,) = collector.trace(completed(server, model="mine/a-prompt"), below=1)
    assert (span.name, call.name) == ("text_completion mine/*", "text_completion mine/*"), "callers choose such names"
    server.until(lambda: b"mine/*" in b"".join(body for path, _, body in collector.taken if "metrics" in path), "told")
    told = b"".join(body for _, _, body in collector.taken)
    for secret in (*SECRETS, server.key):
        assert secret.encode() not in told, secret
        assert secret not in server.log, secret
    assert {headers["authorization"] for _, headers, _ in collector.taken} == {"Bearer of-the-collector"}


@pytest.mark.parametrize("trouble", ["gone", "slow", "refusing", "failing"])
def test_a_collector_in_trouble_costs_no_request_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    at_once(monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    port = free_port()
    with ExitStack() as stack:
        collector = None if trouble == "gone" else stack.enter_context(collecting(port))
        if collector is not None:
            collector.status = {"slow": 200, "refusing": 400, "failing": 503}[trouble]
            if trouble == "slow":
                collector.held.clear()
        server = stack.enter_context(running(tmp_path / "home", settings(port)))
        for _ in range(60):
            assert server.complete("go", max_tokens=2).status == 200
        server.until(lambda: len(server.events("telemetry_unavailable")) == 2, "both signals are told of")
        if collector is None:
            collector = stack.enter_context(collecting(port))
        collector.status = 200
        collector.held.set()
        server.until(lambda: len(server.events("telemetry_back")) == 2, "it is back")
        collector.trace(completed(server), below=1)
        assert len(server.events("telemetry_unavailable")) == 2, "each signal says so once"
        assert {json.loads(line)["event"] for line in server.log.splitlines()} <= KNOWN
        collector.held.clear()
        completed(server)
        assert server.stop() == 0, "also while it answers nothing"


KNOWN = {"process_started", "serving", "request", "telemetry_unavailable", "telemetry_back", "stopping"}


def test_settings_say_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch)
    with collecting() as collector:
        more = 'sample_ratio = 0\nmetrics = false\nservice_name = "writer"'
        with running(tmp_path / "home", settings(collector.port, telemetry=more)) as server:
            completed(server)
            made = completed(server, traceparent=TRACEPARENT)
            collector.trace(made, below=1)
            assert server.stop() == 0
        assert len(collector.spans) == 2, "of two requests, one was its caller's to trace"
        assert {path for path, _, _ in collector.taken} == {"/v1/traces"}
        assert {resource["service.name"] for resource in collector.resources()} == {"writer"}


def test_what_is_left_goes_out_at_the_end(tmp_path: Path) -> None:
    with collecting() as collector, running(tmp_path / "home", settings(collector.port)) as server:
        made = completed(server)
        assert not collector.taken, "the SDK sends every 5 s at the most"
        assert server.stop() == 0
        collector.trace(made, below=1)
        assert collector.points("gen_ai.server.request.duration")


def test_without_it_nothing_of_the_sdk_is_imported() -> None:
    script = "import sys, andthen.supervisor, andthen.cli.serve; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "andthen.server.worker" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith(("opentelemetry", "requests", "google"))]
