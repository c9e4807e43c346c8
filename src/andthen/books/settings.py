"""What the operator may set about the books. Knows no file and no environment variable."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Durability = Literal["process", "power"]
_Days = Annotated[int, Meta(ge=1, le=36_500)]


class BooksSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it is kept who may what, and what was used."""

    database: str = ""
    """PostgreSQL's URL, `postgresql://user:password@host/name`, for several machines; the extra `postgres` brings the
    driver. Unset: the SQLite file `andthen.db` in the state's folder."""
    durability: Durability = "process"
    """What the ledger survives: `process` any death of our processes, also by `kill -9`; `power` also a power cut, or a
    crash of PostgreSQL itself, for which each commit waits for the disk. Changes of keys are always written as with
    `power`."""
    journal_bytes: Annotated[int, Meta(ge=2**16)] = 2**28
    """For each worker, the most bytes of its journal that may wait for the database while it is gone or slow, some 600
    for a request. Past that new requests are refused with 503 `ledger_unavailable`."""
    redis: str = ""
    """Redis or Valkey, in which several machines share the limits of keys: `redis://user:password@host:6379/0`,
    `rediss://` with TLS, or `unix:///path`; the extra `redis` brings the client. Unset, each machine counts for itself,
    all its workers together."""
    redis_gone: Literal["closed", "open"] = "closed"
    """What becomes of keys with limits while Redis is gone: `closed` refuses them with 503 `limits_unavailable`, `open`
    admits them uncounted."""
    keep_requests_days: _Days | None = None
    """For how many days the ledger has a row for each request and each call; then only what they came to stays, by day,
    key and model. Unset: for ever."""
    keep_audit_days: _Days | None = None
    """For how many days it is known who changed a key. Unset: for ever."""
    keep_text_days: _Days | None = None
    """For how many days the prompts and completions of requests are kept, redacted. Unset: not at all."""
    text_characters: Annotated[int, Meta(ge=1, le=2**24)] = 16_384
    """Most characters of a prompt or a completion that are kept, of 64 of each at most for one request."""
    redact_common: bool = True
    """Whether private keys, tokens, API keys in the forms of common services and addresses of e-mail are taken out of
    texts, before the rules of `[redact]` are applied."""
    redact: dict[str, str] = {}
    """Name → expression, in their order."""
    reply_keep_s: Annotated[float, Meta(ge=1, le=30 * 86_400)] = 86_400.0
    """How long a reply to a request with an `Idempotency-Key` is kept, in seconds, sealed with the caller's API key."""
    reply_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 16 * 2**20
    """Largest reply that is kept so; one that is larger is told once."""
    replies_bytes: Annotated[int, Meta(ge=2**20)] = 2**30
    """What all kept replies may come to; past it the oldest are forgotten."""
