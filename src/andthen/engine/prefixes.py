"""The prefix cache: which computed prompts a new one can go on from.

Pure. Holders of a prefix are groups that live and entries that ended; both are found by the hash of their first
`SHORTEST` tokens. An entry keeps a sequence id and its cells until it is forgotten, the one used longest ago first.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from andthen.engine.sequence import Group, Tokens

SHORTEST = 16
"""Tokens below which sharing saves nothing worth a look-up."""


class Prefix:
    """An ended sequence whose cells are kept."""

    __slots__ = ("id", "tokens")

    def __init__(self, tokens: Tokens, id: int) -> None:
        self.tokens = tokens
        self.id = id

    @classmethod
    def of(cls, prompt: Tokens, tail: list[int], id: int) -> Prefix | None:
        """The prompt and the generated tokens after it; None where they are too short to keep."""
        tokens = np.concatenate([prompt, np.asarray(tail, np.int32)]) if tail else prompt
        return cls(tokens, id) if len(tokens) >= SHORTEST else None

    @property
    def computed(self) -> int:
        return len(self.tokens)


class _Live:
    """A group that is being read or grown: what it has read can be shared."""

    __slots__ = ("group",)

    def __init__(self, group: Group) -> None:
        self.group = group

    @property
    def id(self) -> int:
        return self.group.trunk

    @property
    def tokens(self) -> Tokens:
        return self.group.tokens

    @property
    def computed(self) -> int:
        return self.group.held


Holder = Prefix | _Live


class PrefixCache:
    """Entries and live groups by their beginning."""

    def __init__(self) -> None:
        self.cells = 0
        """Tokens that the entries keep."""
        self._entries: OrderedDict[Prefix, None] = OrderedDict()
        self._live: dict[Group, _Live] = {}
        self._index: dict[bytes, list[Holder]] = {}

    @property
    def size(self) -> int:
        return len(self._entries)

    def find(self, tokens: Tokens) -> tuple[Holder, int] | None:
        """The holder that shares most of these tokens, and how many. The last token is never shared: its logits are
        what the first new token is drawn from."""
        best, most = None, SHORTEST - 1
        for holder in self._index.get(_beginning(tokens), ()):
            length = min(_common(holder.tokens[: holder.computed], tokens), len(tokens) - 1)
            if length > most:
                best, most = holder, length
        if best is None:
            return None
        if isinstance(best, Prefix):
            self._entries.move_to_end(best)
        return best, most

    def add_live(self, group: Group) -> None:
        if len(group.tokens) >= SHORTEST and not group.scored:
            self._live[group] = _Live(group)
            self._index.setdefault(_beginning(group.tokens), []).append(self._live[group])

    def drop_live(self, group: Group) -> None:
        holder = self._live.pop(group, None)
        if holder is not None:
            self._unlist(holder)

    def add(self, entry: Prefix) -> list[Prefix]:
        """Keeps the entry; returns those that it makes needless, being beginnings of it, already forgotten."""
        bucket = self._index.setdefault(_beginning(entry.tokens), [])
        stale = [
            holder
            for holder in bucket
            if isinstance(holder, Prefix) and _common(holder.tokens, entry.tokens) == len(holder.tokens)
        ]
        for holder in stale:
            self._forget(holder)
        self._index.setdefault(_beginning(entry.tokens), []).append(entry)
        self._entries[entry] = None
        self.cells += len(entry.tokens)
        return stale

    def pop_oldest(self) -> Prefix:
        entry = next(iter(self._entries))
        self._forget(entry)
        return entry

    def _forget(self, entry: Prefix) -> None:
        del self._entries[entry]
        self.cells -= len(entry.tokens)
        self._unlist(entry)

    def _unlist(self, holder: Holder) -> None:
        key = _beginning(holder.tokens)
        self._index[key].remove(holder)
        if not self._index[key]:
            del self._index[key]


def _beginning(tokens: Tokens) -> bytes:
    return tokens[:SHORTEST].tobytes()


def _common(left: Tokens, right: Tokens) -> int:
    """The length of the longest common beginning."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length
