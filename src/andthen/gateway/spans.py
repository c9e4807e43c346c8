"""The data of a completion's trace: who answered, the calls, how it ended. Knows no OpenTelemetry."""

from __future__ import annotations

from urllib.parse import urlsplit

from andthen.gateway.backend import Deployment
from andthen.gateway.context import RequestContext
from andthen.telemetry.notes import Answerer, Ending, Note

_PORTS = {"http": 80, "https": 443}


def record_work(note: Note, ctx: RequestContext) -> None:
    """The model's work has ended, whatever ended it."""
    deployments = {deployment.model: deployment for deployment, _ in ctx.planned}
    note.answerer = _answerer(ctx.answering)
    note.first_text_s = ctx.first_text_s
    note.usage = ctx.usage
    note.exchanges = [(_answerer(deployments[model]), exchange) for model, exchange in ctx.exchanges]


def ending(ctx: RequestContext, status: int, took_s: float) -> Ending:
    """Args: status: HTTP's, or 499 where the client left."""
    return Ending(
        id=ctx.id,
        started_s=ctx.started_s,
        ended_s=ctx.started_s + took_s,
        status=status,
        code=ctx.code or "",
        traceparent=(ctx.header(b"traceparent") or b"").decode("latin-1"),
    )


def _answerer(deployment: Deployment) -> Answerer:
    model = deployment.label
    if not deployment.address:
        return Answerer(model, deployment.provider)
    address = urlsplit(deployment.address)
    port = address.port or _PORTS[address.scheme]
    return Answerer(model, deployment.provider, address.hostname or "", port)
