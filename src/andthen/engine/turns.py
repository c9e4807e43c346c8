"""A bounded queue for several threads, fair between those who ask: one thing of each in turn, one at a time in work."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, NamedTuple, TypeVar

from andthen.engine.messages import Detokenize, Tokenize

Key = tuple[int, int]
"""The link that asked, and its number for it."""
T = TypeVar("T")


class Turn(NamedTuple, Generic[T]):
    key: Key
    owner: str
    weight: int
    """Of the queue's bound."""
    thing: T


class Turns(Generic[T]):
    """The queue.

    Args:
        bound: of the weights that wait; what is heavier alone may still wait alone.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Turn[T]]] = OrderedDict()
        """By owner, the one whose turn is next first; none is empty."""
        self._in_work: set[str] = set()
        self._open = True

    def put(self, turn: Turn[T]) -> list[Turn[T]]:
        """Lets it wait for its turn. What is given back found no room: the last of whoever has most waiting, which may
        be this one; so nobody takes all the room."""
        left_out: list[Turn[T]] = []
        with self._changed:
            self._waiting.setdefault(turn.owner, deque()).append(turn)
            while (weights := self._weights()) and sum(weights.values()) > self._bound:
                if sum(map(len, self._waiting.values())) == 1:
                    break
                most = max(weights.values())
                owner = turn.owner if weights.get(turn.owner) == most else max(weights, key=weights.__getitem__)
                left_out.append(self._waiting[owner].pop())
                self._forget_if_empty(owner)
            self._changed.notify()
        return left_out

    def take(self) -> Turn[T] | None:
        """The next, once there is one; `done` is to be called with it. None once the queue is closed."""
        with self._changed:
            while self._open:
                owner = next((name for name in self._waiting if name not in self._in_work), None)
                if owner is not None:
                    turn = self._waiting[owner].popleft()
                    self._waiting.move_to_end(owner)
                    self._forget_if_empty(owner)
                    self._in_work.add(owner)
                    return turn
                self._changed.wait()
        return None

    def done(self, turn: Turn[T]) -> None:
        with self._changed:
            self._in_work.discard(turn.owner)
            self._changed.notify()

    def drop(self, link: int, number: int | None = None) -> None:
        """Nobody waits any more for what this link asked, or for this one thing of it."""
        with self._changed:
            for owner, turns in list(self._waiting.items()):
                kept = [turn for turn in turns if turn.key[0] != link or number not in (None, turn.key[1])]
                if len(kept) < len(turns):
                    self._waiting[owner] = deque(kept)
                    self._forget_if_empty(owner)

    def close(self) -> None:
        """Who takes gets nothing any more."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _weights(self) -> dict[str, int]:
        return {owner: sum(turn.weight for turn in turns) for owner, turns in self._waiting.items()}

    def _forget_if_empty(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]


_HEAVY_BYTES = 256 << 10
"""A question about text counts as one waiting request, and as one more for each so many bytes."""
_ID_BYTES = 40
"""Of memory: a number, and the place that points to it."""


def weight(question: Tokenize | Detokenize) -> int:
    """What it counts for of the requests that may wait."""
    size = len(question.text) if isinstance(question, Tokenize) else _ID_BYTES * len(question.tokens)
    return 1 + size // _HEAVY_BYTES
