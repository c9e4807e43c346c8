"""`andthen` with a ledger that writes nothing, to be measured beside: `python -m bench.bookless serve …`.

No setting turns the ledger off, so its pen is taken away here.
"""

from __future__ import annotations

from collections.abc import Generator

from andthen.books.writer import LedgerWriter

from andthen.cli import main
from andthen.ledger.records import Bounded, Intent, Settlement


class _Written:
    """As `andthen.books.writer.Writing`, and over at once."""

    def __await__(self) -> Generator[None, None, Bounded | None]:
        return None
        yield

    def leave(self) -> None:
        pass


def _intend(self: LedgerWriter, intent: Intent) -> _Written:
    return _Written()


async def _settle(self: LedgerWriter, settlement: Settlement) -> None:
    return None


if __name__ == "__main__":
    LedgerWriter.intend = _intend  # type: ignore[assignment, method-assign]
    LedgerWriter.settle = _settle  # type: ignore[method-assign]
    main()
