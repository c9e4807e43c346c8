"""Replies that are kept under an Idempotency-Key. They come sealed: nothing here can read them.

A reply belongs to whoever claimed it, until it has ended or the process that makes it is dead. What comes from anyone
else is not taken.
"""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct

from andthen.books.store.database import Database
from andthen.books.store.ledger import clock_ms, insert
from andthen.books.store.schema import HOLDERS, REPLIES, REPLY_PARTS, REQUESTS

ReplyState = Literal["running", "whole", "broken", "large"]
"""It is being made; it is complete; it ended with an error in its middle; it is too large to be kept."""
_TRIES = 10
_AT_ONCE = 200


class ReplyPlace(Struct, frozen=True):
    """Where a reply is kept, and for whom."""

    key_id: str
    name: bytes
    """32 bytes, of the Idempotency-Key."""
    request_id: str
    """The request that makes it."""


class Claim(Struct, frozen=True, kw_only=True):
    """A request that would make the reply."""

    place: ReplyPlace
    body: bytes
    """32 bytes that tell whether two requests are the same."""
    holder: str
    keep_ms: int
    lost: str = ""
    """A request that is known to make it no more."""


class Claimed(Struct, frozen=True):
    """Whose the reply is now."""

    request_id: str
    body: bytes
    holder: str
    state: ReplyState


class KeptParts(Struct, frozen=True):
    """What there is of a reply."""

    state: ReplyState
    parts: list[bytes]
    """Those that were asked for, in their order."""
    lives: bool
    """It has ended, or the process that makes it lives."""


class Replies(Database):
    """Replies, in parts."""

    def claim_reply(self, claim: Claim) -> Claimed:
        """Makes the reply the claim's own, unless it is another's that lives or has ended."""
        place = claim.place
        for _ in range(_TRIES):
            with self.writing() as connection:
                now_ms = clock_ms(connection)
                row = {
                    "body": claim.body, "request_id": place.request_id, "holder": claim.holder, "state": "running",
                    "parts": 0, "bytes": 0, "expires_at_ms": now_ms + claim.keep_ms,
                }  # fmt: skip
                made = insert(connection, REPLIES).values(row | {"key_id": place.key_id, "name": place.name})
                if connection.execute(made.on_conflict_do_nothing().returning(REPLIES.c.state)).first():
                    return Claimed(place.request_id, claim.body, claim.holder, "running")
                found = _found(connection, place, now_ms)
                if found is None:
                    continue  # it was forgotten meanwhile
                if found.lives and not (found.state == "running" and found.request_id == claim.lost):
                    return Claimed(found.request_id, found.body, found.holder, found.state)
                mine = sa.and_(_at(REPLIES, place), REPLIES.c.request_id == found.request_id)
                if connection.execute(REPLIES.update().where(mine).values(row)).rowcount:
                    connection.execute(REPLY_PARTS.delete().where(_at(REPLY_PARTS, place)))
                    return Claimed(place.request_id, claim.body, claim.holder, "running")
        raise AssertionError("a reply that comes and goes")

    def add_reply_part(
        self, place: ReplyPlace, number: int, sealed: bytes | None, *, state: ReplyState = "running"
    ) -> int | None:
        """Adds part `number`, if one is given, and says how far the reply is. To do it twice is to do it once.

        Returns:
            The bytes that are kept of it; None where the reply is this request's no more.
        """
        mine = sa.and_(_at(REPLIES, place), REPLIES.c.request_id == place.request_id)
        more: dict[str, Any] = {"state": state}
        if sealed is not None:
            more |= {"bytes": REPLIES.c.bytes + len(sealed), "parts": number + 1}
        with self.writing() as connection:
            change = REPLIES.update().where(mine, REPLIES.c.parts == number).values(more)
            if connection.execute(change).rowcount:
                if state == "large":
                    connection.execute(REPLY_PARTS.delete().where(_at(REPLY_PARTS, place)))
                elif sealed is not None:
                    part = {"key_id": place.key_id, "name": place.name, "number": number, "sealed": sealed}
                    connection.execute(REPLY_PARTS.insert().values(part))
            size = connection.execute(sa.select(REPLIES.c.bytes).where(mine)).scalar()
        return None if size is None else int(size)

    def reply_parts(self, place: ReplyPlace, first: int) -> KeptParts | None:
        """The parts from number `first` on; None where the reply is this request's no more."""
        with self.reading() as connection:
            found = _found(connection, place, clock_ms(connection))
            if found is None or found.request_id != place.request_id:
                return None
            which = sa.and_(_at(REPLY_PARTS, place), REPLY_PARTS.c.number.between(first, found.parts - 1))
            read = sa.select(REPLY_PARTS.c.sealed).where(which).order_by(REPLY_PARTS.c.number)
            parts = [bytes(sealed) for sealed in connection.execute(read).scalars()]
        taken_over = len(parts) != max(0, found.parts - first) and found.state != "large"
        return None if taken_over else KeptParts(found.state, parts, found.lives)

    def forget_reply(self, place: ReplyPlace) -> None:
        """As if it had never been claimed, if it is this request's."""
        with self.writing() as connection:
            mine = sa.and_(_at(REPLIES, place), REPLIES.c.request_id == place.request_id)
            if connection.execute(REPLIES.delete().where(mine)).rowcount:
                connection.execute(REPLY_PARTS.delete().where(_at(REPLY_PARTS, place)))

    def forget_replies(self, most_bytes: int) -> int:
        """Removes those that are over their time, and the oldest until no more than `most_bytes` are kept; how many."""
        names = (REPLIES.c.key_id, REPLIES.c.name)
        made = (*names, REPLIES.c.request_id)
        upto = sa.func.sum(REPLIES.c.bytes).over(order_by=(REPLIES.c.expires_at_ms.desc(), *names))
        forgotten = 0
        while True:
            with self.writing() as connection:
                old = REPLIES.c.expires_at_ms <= clock_ms(connection)
                kept = sa.select(*made, old.label("old"), upto.label("upto")).subquery()
                gone = sa.select(*(kept.c[column.name] for column in made))
                gone = gone.where(sa.or_(kept.c.old, kept.c.upto > most_bytes)).limit(_AT_ONCE)
                found = [tuple(row) for row in connection.execute(gone)]
                # Not one that was claimed anew meanwhile.
                removed = REPLIES.delete().where(sa.tuple_(*made).in_(found)).returning(*names)
                theirs = [tuple(row) for row in connection.execute(removed)]
                parts = sa.tuple_(REPLY_PARTS.c.key_id, REPLY_PARTS.c.name)
                connection.execute(REPLY_PARTS.delete().where(parts.in_(theirs)))
            forgotten += len(found)
            if len(found) < _AT_ONCE:
                return forgotten


class _Found(Struct, frozen=True):
    request_id: str
    body: bytes
    holder: str
    state: ReplyState
    parts: int
    lives: bool


def _found(connection: sa.Connection, place: ReplyPlace, now_ms: int) -> _Found | None:
    lease = sa.select(HOLDERS.c.until_ms).where(HOLDERS.c.id == REPLIES.c.holder).scalar_subquery().label("until_ms")
    # While the database is gone no lease is renewed. So who has a request open is dead only when the ledger says so.
    works = sa.exists().where(REQUESTS.c.id == REPLIES.c.request_id, REQUESTS.c.settled_at_ms.is_(None)).label("works")
    row = connection.execute(sa.select(REPLIES, lease, works).where(_at(REPLIES, place))).first()
    if row is None:
        return None
    running = row.state == "running"
    lives = row.works or (row.until_ms or 0) > now_ms if running else row.expires_at_ms > now_ms
    return _Found(row.request_id, bytes(row.body), row.holder, row.state, row.parts, lives)


def _at(table: sa.Table, place: ReplyPlace) -> sa.ColumnElement[bool]:
    columns: Any = table.c
    return sa.and_(columns.key_id == place.key_id, columns.name == place.name)
