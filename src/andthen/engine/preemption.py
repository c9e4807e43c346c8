"""Which sequences give up their places when a group does not fit beside them, and how a step is divided.

Pure. An owner's share is the largest part that it holds of anything the pool has: places to run in, sequence ids,
cells (dominant resource fairness: Ghodsi et al. 2011). In this order, and only as far as it helps the group to fit:

1. A prompt of which no candidate runs at the moment.
2. Sequences whose reader has been behind for `PAUSED_S`, whoever wants their place.
3. Sequences of the owner with the largest share, as long as it keeps no less than the other one then has.
4. An owner that holds nothing takes turns with one that was served `turn_tokens` more, whatever the shares: so a
   sequence that needs most of the pool shares it in time.

A sequence is computed again when it goes on, so that whoever is admitted has to make progress: one that has chosen
tokens is taken by rule 4 only after `turn_tokens` more since it was last admitted, and by rule 3, which can't take
turns for ever, after a quarter of them. A prompt that is being read stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

from msgspec import Struct

from andthen.engine.sequence import Group, Sequence, State

PAUSED_S = 0.5
"""A reader that is behind for less is one that reads in bursts: its sequences keep their places."""

_SHORT = 4

Victim = Sequence | Group


class Amount(NamedTuple):
    """Of what a pool has."""

    slots: int = 0
    """Candidates that run."""
    ids: int = 0
    cells: int = 0

    def plus(self, other: Self) -> Self:
        return type(self)(self.slots + other.slots, self.ids + other.ids, self.cells + other.cells)

    def minus(self, other: Self) -> Self:
        return type(self)(self.slots - other.slots, self.ids - other.ids, self.cells - other.cells)

    def share(self, whole: Self) -> float:
        return max(self.slots / whole.slots, self.ids / whole.ids, self.cells / whole.cells)

    @property
    def positive(self) -> bool:
        return self.slots > 0 or self.ids > 0 or self.cells > 0


def divide(whole: int, wanted: Mapping[str, int]) -> dict[str, int]:
    """Equal parts of `whole`, where nobody gets more than it wants and what one leaves goes to the others."""
    parts: dict[str, int] = {}
    left = whole
    for place, owner in enumerate(sorted(wanted, key=wanted.__getitem__)):
        parts[owner] = min(wanted[owner], -(-left // (len(wanted) - place)))
        left -= parts[owner]
    return parts


class Claim(Struct, frozen=True):
    """A group that does not fit.

    Attributes:
        group: whose next candidate it is.
        need: what that takes.
        free: what is free without a preemption.
        whole: what the pool has.
        held: what each owner holds.
        served: tokens computed for each owner.
        turn_tokens: see above.
    """

    group: Group
    need: Amount
    free: Amount
    whole: Amount
    held: Mapping[str, Amount]
    served: Mapping[str, int]
    turn_tokens: int

    def victims(self, live: Mapping[Group, None], now_s: float) -> list[Victim]:
        """Those that have to go, in this order; none where the group has to wait.

        Args:
            live: the groups that hold something.
            now_s: on the clock of `Group.paused_at_s`.
        """
        choice = _Choice(self)
        others = [group for group in live if group is not self.group]
        for group in others:
            if group.running == 0 and (group.state is State.OPEN or group.paused_at_s is not None):
                choice.take(group)
        for group in others:
            if group.paused_at_s is not None and now_s - group.paused_at_s >= PAUSED_S:
                for sequence in reversed(group.sequences):
                    choice.take(sequence)
        if choice.missing.positive:
            self._take_shares(choice, others)
        return [] if choice.missing.positive else choice.victims

    def _take_shares(self, choice: _Choice, others: list[Group]) -> None:
        mine = self.held.get(self.group.owner)
        wanted = (mine or Amount()).plus(self.need).share(self.whole)
        candidates = self._candidates(others)
        while candidates and choice.missing.positive:
            owner = max(candidates, key=choice.share)
            victim = candidates[owner].pop()
            in_turn = mine is None and self.served[owner] - self.served[self.group.owner] >= self.turn_tokens
            if choice.share(owner, without=victim) < wanted and not (in_turn and self._had(victim, self.turn_tokens)):
                del candidates[owner]
                continue
            choice.take(victim)
            if not candidates[owner]:
                del candidates[owner]

    def _candidates(self, others: list[Group]) -> dict[str, list[Victim]]:
        """By owner, what may be taken from it; what loses least comes last."""
        found: dict[str, list[tuple[bool, int, Victim]]] = {}
        for group in others:
            if group.owner == self.group.owner:
                continue
            unread = group.state is State.READING and group.held == group.given
            going = group.paused_at_s is None
            mine = found.setdefault(group.owner, [])
            if group.running == 0 and unread:
                mine.append((going, 0, group))
            for sequence in group.sequences:
                if sequence.state is State.RUNNING and (not going or self._may_go(sequence, unread)):
                    mine.append((going, sequence.decoded + group.held, sequence))
        for mine in found.values():
            mine.sort(key=lambda one: one[:2], reverse=True)
        return {owner: [victim for _, _, victim in mine] for owner, mine in found.items() if mine}

    def _may_go(self, sequence: Sequence, unread: bool) -> bool:
        if sequence.chosen:
            return self._had(sequence, self.turn_tokens // _SHORT)
        # Nothing is lost while a sibling stays for whom the prompt is read; the first is the last to go.
        return unread or sequence is not next(s for s in sequence.group.sequences if s.state is State.RUNNING)

    @staticmethod
    def _had(victim: Victim, tokens: int) -> bool:
        """Whether it got so many tokens since it was last admitted, or has nothing to lose or to wait for."""
        if isinstance(victim, Group) or not victim.chosen or victim.group.paused_at_s is not None:
            return True
        return len(victim.chosen) - victim.resumed_at >= tokens


class _Choice:
    """The victims so far, and what is then still missing."""

    def __init__(self, claim: Claim) -> None:
        self.victims: list[Victim] = []
        self.missing = claim.need.minus(claim.free)
        self._claim = claim
        self._held = dict(claim.held)
        self._gone: dict[Victim, None] = {}
        self._left: dict[Group, int] = {}
        """Of groups that lose sequences, how many go on running."""

    def share(self, owner: str, without: Victim | None = None) -> float:
        held = self._held[owner]
        if without is not None:
            held = held.minus(self._amount(without))
        return held.share(self._claim.whole)

    def take(self, victim: Victim) -> None:
        """If something is missing, and the victim still has it."""
        if not self.missing.positive or victim in self._gone:
            return
        if isinstance(victim, Group):
            self._count(victim, victim)
            return
        group = victim.group
        if victim.state is not State.RUNNING:
            return
        self._count(victim, group)
        self._left[group] = self._left.get(group, group.running) - 1
        if self._left[group] == 0 and not group.single and self.missing.positive:
            self._count(group, group)

    def _count(self, victim: Victim, group: Group) -> None:
        amount = self._amount(victim)
        self._gone[victim] = None
        self.victims.append(victim)
        self.missing = self.missing.minus(amount)
        self._held[group.owner] = self._held[group.owner].minus(amount)

    @staticmethod
    def _amount(victim: Victim) -> Amount:
        if isinstance(victim, Group):
            return Amount(0, 1, len(victim.tokens))
        group = victim.group
        return Amount(1, 1, group.max_tokens + (len(group.tokens) if group.single else 0))
