"""Records of the ledger, as tests make them."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from andthen.books.store import SqlStore
from andthen.ledger.records import Call, Intent, Record, Settlement, Tokens

NOON_MS = 1_800_014_400_000
"""2027-01-15 12:00 UTC."""


def intent(number: int | str, **fields: object) -> Intent:
    first = Intent(
        id=f"cmpl-{number}", key_id="key_a", lease_owner="here", model="local/tale", started_at_ms=NOON_MS,
        reserved_micros=100, reserved_tokens=50,
    )  # fmt: skip
    return replace(first, **fields)


def settled(of: Intent, **fields: object) -> Settlement:
    first = Settlement(
        intent=of, status=200, ended_by="reply", settled_at_ms=NOON_MS + 5, cost_micros=30,
        tokens=Tokens(prompt=10, completion=5),
        calls=(Call(model="local/tale", status=200, tokens=Tokens(prompt=10, completion=5), cost_micros=30),),
    )  # fmt: skip
    return replace(first, **fields)


def post(store: SqlStore, records: Iterable[Record]) -> None:
    """In one transaction."""
    each = list(records)
    store.post([one for one in each if isinstance(one, Intent)], [one for one in each if isinstance(one, Settlement)])
