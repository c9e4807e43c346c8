"""What telemetry is told of a completion: who answered, what was exchanged, how it ended. Knows no OpenTelemetry."""

from __future__ import annotations

from urllib.parse import urlsplit

from andthen.catalog import Catalog
from andthen.complete import Work
from andthen.server.http import Exchange
from andthen.sources import Deployment
from andthen.telemetry.notes import Answerer, Ending, Note

_PORTS = {"http": 80, "https": 443}


def note_work(note: Note, work: Work, catalog: Catalog) -> None:
    """The work is over, whatever ended it."""
    deployments = {deployment.model: deployment for deployment, _ in work.candidates}
    note.answerer = _answerer(work.deployment, catalog)
    note.usage = work.usage
    note.exchanges = [(_answerer(deployments[model], catalog), exchange) for model, exchange in work.exchanges]


def ending(exchange: Exchange, status: int, took_s: float) -> Ending:
    """Args: status: HTTP's, or 499 where the client left."""
    return Ending(
        id=exchange.id,
        started_s=exchange.started_s,
        ended_s=exchange.started_s + took_s,
        status=status,
        code=exchange.code or "",
        traceparent=(exchange.header(b"traceparent") or b"").decode("latin-1"),
    )


def _answerer(deployment: Deployment, catalog: Catalog) -> Answerer:
    model = catalog.label(deployment)
    if not deployment.address:
        return Answerer(model, deployment.provider)
    address = urlsplit(deployment.address)
    port = address.port or _PORTS[address.scheme]
    return Answerer(model, deployment.provider, address.hostname or "", port)
