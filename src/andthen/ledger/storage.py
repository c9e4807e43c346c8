"""What the ledger asks of a database. All methods block; `StorageUnavailable` is raised where it can't be used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from andthen.ledger.records import Intent, Settlement, Window

Kind = Literal["money", "tokens"]


class StorageError(Exception):
    """What the database did not do."""


class StorageUnavailable(StorageError):
    """The database can't be used now."""


class BadRecord(StorageError):
    """The database can't hold a record; none of its batch was written."""


class LeaseLost(StorageError):
    """The owner of allotments was taken for dead, and they were given back: it must begin anew under another name."""


class Place(NamedTuple):
    """One bound of one key's budget in one period."""

    key_id: str
    window: Window
    start_ms: int
    """When the period began, milliseconds since 1970, UTC."""
    kind: Kind


class Want(NamedTuple):
    """What an owner asks for at one place, in millionths of a dollar or in tokens."""

    place: Place
    bound: int
    drawn: int
    """What the owner has drawn in all; the database takes this for true."""
    need: int
    """What it needs more."""
    exact: bool
    """Not more than that."""


class Drawn(NamedTuple):
    """What an owner got at one place."""

    granted: int
    spent: int
    """What the database knows to be spent in the period."""
    others: int
    """What other owners hold."""
    posted: int
    """What the database knows to be spent out of this owner's allotment."""


class JournalStorage(Protocol):
    """What records are posted to."""

    def post(self, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None:
        """Writes records in one transaction. An intent that is there already, and a settlement of a request that is
        settled already, are passed over; a request that was settled as lost is settled anew. Raises `BadRecord`.
        """

    def renew(self, lease_owner: str, lease_s: float) -> None:
        """The process lives, for so long at least."""


class LeaseStorage(Protocol):
    """Who lives, and what the dead have left."""

    def leases(self) -> dict[str, int]:
        """Who has open requests or allotments, and until when each lives; 0 where it never said so."""

    def release_lost(self, lease_owners: Collection[str]) -> int:
        """Settles the open requests of those whose lease has ended as lost, and gives their allotments back. How many
        requests."""

    def end_lease(self, lease_owner: str) -> int:
        """The process, or the owner of allotments, is dead: as `release_lost`, whatever its lease says."""


class BudgetStorage(Protocol):
    """Where allotments are drawn from: what owners hold and what is spent never come to more than a budget."""

    def renew_owner(self, owner: str, lease_s: float) -> None:
        """Raises `LeaseLost`."""

    def begin_owner(self, owner: str, lease_s: float) -> None:
        """A new owner lives, for so long at least."""

    def draw(self, owner: str, wants: Sequence[Want]) -> list[Drawn]:
        """Grants all that is needed, all places of one key, or nothing; where room lacks, others who hold some are
        asked to give it back. Raises `LeaseLost`."""

    def give_back(self, owner: str, drawn: Mapping[Place, int], idle: Collection[Place]) -> set[Place]:
        """Sets what the owner has drawn in all. Those of the idle places where all of it is known to be spent are
        forgotten, and returned."""

    def wanted(self, owner: str) -> set[Place]:
        """Where others lack what the owner holds."""

    def costs(self, request_ids: Collection[str]) -> dict[str, tuple[int, int]]:
        """The cost of settled requests, in millionths of a dollar and in tokens."""
