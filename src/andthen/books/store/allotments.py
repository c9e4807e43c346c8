"""Allotments: what owners of budgets have drawn of what is left of a key's budget, and what of it is posted.

Under a key's lock `spent + the sum of (drawn - posted) <= bound` holds: a draw keeps to it, and posting moves an amount
from one side to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from andthen.books.store.database import Database
from andthen.books.store.errors import OwnerLeaseLost
from andthen.books.store.ledger import clock_ms, insert, known, lock_keys
from andthen.books.store.schema import ALLOTMENTS, HOLDERS, SPENDING
from andthen.ledger.records import Spent
from andthen.ledger.storage import Drawn, Place, Want

_SHARE = 4
"""An owner draws such a part of what is left."""
_NEAR = 8
"""With less than so many times what a request needs, it draws that only."""
_PRIMARY_KEY = ["key_id", "window", "start_ms", "kind", "owner"]


class Allotments(Database):
    """The methods are those that `andthen.ledger.storage` declares."""

    def begin_owner(self, owner: str, lease_s: float) -> None:
        with self.writing() as connection:
            until_ms = clock_ms(connection) + round(lease_s * 1000)
            row = insert(connection, HOLDERS).values(id=owner, until_ms=until_ms)
            connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"until_ms": until_ms}))

    def renew_owner(self, owner: str, lease_s: float) -> None:
        with self.writing() as connection:
            until_ms = clock_ms(connection) + round(lease_s * 1000)
            if not connection.execute(HOLDERS.update().where(HOLDERS.c.id == owner).values(until_ms=until_ms)).rowcount:
                raise OwnerLeaseLost

    def draw(self, owner: str, wants: Sequence[Want]) -> list[Drawn]:
        with self.writing() as connection:
            lock_keys(connection, {want.place.key_id for want in wants})
            if connection.execute(sa.select(HOLDERS.c.id).where(HOLDERS.c.id == owner)).first() is None:
                raise OwnerLeaseLost
            found = [_standing(connection, owner, want) for want in wants]
            rooms = [
                want.bound - one.spent - one.others - (want.drawn - one.posted)
                for want, one in zip(wants, found, strict=True)
            ]
            fits = all(room >= want.need for want, room in zip(wants, rooms, strict=True))
            drawn = []
            for want, one, room in zip(wants, found, rooms, strict=True):
                got = one._replace(granted=_granted(want, room) if fits else 0)
                drawn.append(got)
                _set_drawn(connection, owner, want.place, want.drawn + got.granted)
                if room < want.need and one.others:
                    lacking = sa.and_(_at(want.place), ALLOTMENTS.c.owner != owner)
                    connection.execute(ALLOTMENTS.update().where(lacking).values(wanted=True))
            return drawn

    def give_back(self, owner: str, drawn: Mapping[Place, int], idle: Collection[Place]) -> set[Place]:
        forgotten = set()
        with self.writing() as connection:
            lock_keys(connection, {place.key_id for place in drawn})
            for place, total in drawn.items():
                mine = sa.and_(_at(place), ALLOTMENTS.c.owner == owner)
                values = {"drawn": total, "wanted": False}
                there = connection.execute(ALLOTMENTS.update().where(mine).values(values)).rowcount
                if place in idle:
                    spent = sa.and_(mine, ALLOTMENTS.c.posted == total)
                    if not there or connection.execute(ALLOTMENTS.delete().where(spent)).rowcount:
                        forgotten.add(place)
        return forgotten

    def wanted(self, owner: str) -> set[Place]:
        columns = (ALLOTMENTS.c.key_id, ALLOTMENTS.c.window, ALLOTMENTS.c.start_ms, ALLOTMENTS.c.kind)
        with self.reading() as connection:
            rows = connection.execute(sa.select(*columns).where(ALLOTMENTS.c.owner == owner, ALLOTMENTS.c.wanted))
            return {Place(row[0], row[1], int(row[2]), row[3]) for row in rows}


def _granted(want: Want, room: int) -> int:
    if want.exact or room < _NEAR * want.need:
        return want.need
    return max(want.need, room // _SHARE) if want.need else 0


def _standing(connection: sa.Connection, owner: str, want: Want) -> Drawn:
    """What is spent and held at a place, nothing granted yet."""
    place = want.place
    rows = connection.execute(
        sa.select(ALLOTMENTS.c.owner, ALLOTMENTS.c.drawn, ALLOTMENTS.c.posted).where(_at(place))
    ).all()  # fmt: skip
    others = sum(max(0, int(row.drawn) - int(row.posted)) for row in rows if row.owner != owner)
    posted = sum(int(row.posted) for row in rows if row.owner == owner)
    spent = _spent(connection, place)
    return Drawn(0, spent.micros if place.kind == "money" else spent.tokens, others, posted)


def _spent(connection: sa.Connection, place: Place) -> Spent:
    """What is spent in a period; its row is made where there is none."""
    columns = [SPENDING.c[name] for name in Spent._fields]
    key = {"key_id": place.key_id, "window": place.window, "start_ms": place.start_ms}
    at = sa.and_(*(SPENDING.c[name] == value for name, value in key.items()))
    if (row := connection.execute(sa.select(*columns).where(at)).first()) is not None:
        return Spent(*map(int, row))
    spent = known(connection, place.key_id, place.window, place.start_ms)
    connection.execute(SPENDING.insert().values(key | spent._asdict()))
    return spent


def _set_drawn(connection: sa.Connection, owner: str, place: Place, drawn: int) -> None:
    row = insert(connection, ALLOTMENTS).values(
        place._asdict() | {"owner": owner, "drawn": drawn, "posted": 0, "wanted": False}
    )
    connection.execute(row.on_conflict_do_update(index_elements=_PRIMARY_KEY, set_={"drawn": drawn}))


def _at(place: Place) -> sa.ColumnElement[bool]:
    return sa.and_(*(ALLOTMENTS.c[name] == value for name, value in place._asdict().items()))
