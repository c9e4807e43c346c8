"""Events before the error that comes after them, wherever a reply's bytes were cut."""

from __future__ import annotations

from collections.abc import Iterable

from andthen.contract.errors import AndthenError
from andthen.contract.events import Event


class Deferred:
    """Gives out what came before an error, and raises the error when it is asked again."""

    __slots__ = ("_error",)

    def __init__(self) -> None:
        self._error: AndthenError | None = None

    def collect(self, batches: Iterable[list[Event]]) -> list[Event]:
        """The events of all batches. Raises the error that stopped an earlier call, or this one before any event."""
        self.settle()
        events: list[Event] = []
        try:
            for batch in batches:
                events += batch
        except AndthenError as error:
            if not events:
                raise
            self._error = error
        return events

    def settle(self) -> None:
        """Raises the error that stopped an earlier call."""
        if self._error is not None:
            raise self._error
