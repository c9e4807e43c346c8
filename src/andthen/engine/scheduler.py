"""What runs next: continuous batching over one pool of cells.

Pure: every decision is a value (`Step`) that the loop carries out and tests can attack. A cell holds one token's keys
and values. The unit of admission is a sequence: a prompt's cells, counted once while any of its candidates lives, and
`max_tokens` cells for each candidate, so that what was admitted can always finish. Cells that sequences share through
the prefix cache are counted for each of them: the true use never passes the count.

Turns are given to the owner that holds the smallest share of the pool, and among equals to the one served fewest
tokens; within an owner, a request's remaining candidates come before its next request. What does not fit takes the
places of others, as `preemption` says. An owner that holds nothing is not overtaken while it waits, so that no big
request starves; behind one that holds something the others go on. A step's prompt tokens are divided between the
owners equally, as far as they have use for them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping

from msgspec import Struct

from andthen.engine.preemption import Amount, Claim, Victim, divide
from andthen.engine.prefixes import Prefix, PrefixCache
from andthen.engine.sequence import Group, Sequence, State

_DEBT_STEPS = 4
"""An owner that comes back is at most so many steps' tokens behind the others for what it was served before."""


class Bounds(Struct, frozen=True):
    """What a model's context has.

    Attributes:
        cells: tokens that the pool holds.
        ids: sequence ids, 0 … ids−1.
        running: candidates that run at once.
        batch_tokens: tokens of one step; more than `running`, so that prompts go on beside a full house.
        scored_tokens: of these, prompt positions whose logits are wanted.
        cache_cells: tokens that the prefix cache keeps at most.
        cache_ids: the last so many ids hold cached prefixes only, so that those of what runs follow each other; an
            entry is copied there. 0: entries stay where they are.
        turn_tokens: new tokens that a sequence gets before it may be preempted for a fairer share.
    """

    cells: int
    ids: int
    running: int
    batch_tokens: int
    scored_tokens: int = 128
    cache_cells: int = 0
    cache_ids: int = 0
    turn_tokens: int = 32


class Fork(Struct, frozen=True):
    """`target` shares the first `length` cells of `source`."""

    source: int
    target: int
    length: int


class Drop(Struct, frozen=True):
    """The sequence id gives up its cells."""

    id: int


class Read(Struct, frozen=True):
    """Tokens that are known go into the batch: of the prompt, or what a preempted sequence had chosen.

    Attributes:
        start, stop: their places, [start, stop), in the prompt or in the sequence's chosen tokens.
        again: they were computed before.
        sequence: whose chosen tokens they are; None: they are the prompt's.
    """

    group: Group
    start: int
    stop: int
    again: bool = False
    sequence: Sequence | None = None

    @property
    def last(self) -> bool:
        """The prompt is read with this."""
        return self.sequence is None and self.stop == len(self.group.tokens)

    @property
    def scored(self) -> bool:
        """The logits of all these tokens are wanted."""
        return self.group.scored and not self.again

    @property
    def id(self) -> int:
        return self.group.trunk if self.sequence is None else self.sequence.id

    @property
    def position(self) -> int:
        """Where the first of them stands in the text."""
        return self.start if self.sequence is None else len(self.group.tokens) + self.start

    @property
    def tokens(self) -> list[int]:
        if self.sequence is not None:
            return self.sequence.chosen[self.start : self.stop]
        return list(self.group.tokens[self.start : self.stop].tolist())


class Step(Struct, frozen=True):
    """One turn of the engine, in the order in which it is carried out."""

    memory: list[Fork | Drop]
    decodes: list[Sequence]
    """Each decodes its next chosen token."""
    reads: list[Read]
    starts: list[Sequence]
    """Each gets its first token from the logits of its prompt's last position, now or read in an earlier step."""
    preempted: int = 0
    """How many sequences gave up their places."""

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(read.stop - read.start for read in self.reads)


class Scheduler:
    """The state of one model's pool. Groups come by `add`, go by `finish` and `cancel`; `plan` says what runs."""

    def __init__(self, bounds: Bounds) -> None:
        if bounds.batch_tokens <= bounds.running:
            raise ValueError("batch_tokens must be more than running")
        self.bounds = bounds
        self.prefixes = PrefixCache()
        self.running: dict[Sequence, None] = {}
        self._whole = Amount(bounds.running, bounds.ids - bounds.cache_ids, bounds.cells)
        self._queues: dict[str, OrderedDict[Group, None]] = {}
        self._stalled: dict[Group, None] = {}
        """Groups that wait and whose reader is behind: nobody's turn."""
        self._live: dict[Group, None] = {}
        self._shares: dict[str, Amount] = {}
        """What each owner holds that holds anything."""
        self._served: dict[str, int] = {}
        self._free_ids = list(range(bounds.ids - bounds.cache_ids))
        self._free_cache_ids = list(range(bounds.ids - bounds.cache_ids, bounds.ids))
        self._held = 0
        self._memory: list[Fork | Drop] = []
        self._preempted = 0

    @property
    def idle(self) -> bool:
        return not self._live and not self._queues and not self._stalled

    @property
    def cells_held(self) -> int:
        """Cells reserved for what runs."""
        return self._held

    @property
    def shares(self) -> Mapping[str, Amount]:
        """What each owner holds that holds anything."""
        return self._shares

    def add(self, group: Group) -> None:
        """Queues a group of which one candidate fits into the empty pool."""
        owner = group.owner
        if owner not in self._shares and owner not in self._queues:
            # Having been away is no credit, and what an owner was served while nobody wanted it is no lasting debt.
            present = {*self._shares, *self._queues, *(stalled.owner for stalled in self._stalled)}
            least = min((self._served[other] for other in present), default=0)
            most = least + _DEBT_STEPS * self.bounds.batch_tokens
            self._served[owner] = min(max(self._served.get(owner, 0), least), most)
        self._enqueue(group)

    def pause(self, group: Group, now_s: float) -> None:
        """The group's reader is behind: its sequences keep their cells, until others want them, and get no tokens."""
        if group.paused_at_s is None:
            waits = group.state is State.WAITING and self._unqueue(group)
            group.paused_at_s = now_s
            if waits:
                self._stalled[group] = None

    def resume(self, group: Group) -> None:
        """Its reader goes on."""
        if group.paused_at_s is not None:
            group.paused_at_s = None
            if group in self._stalled:
                del self._stalled[group]
                self._enqueue(group, first=True)

    def plan(self, now_s: float) -> Step:
        """What runs next; it counts as done.

        Args:
            now_s: on the clock that `pause` is told.
        """
        starts = self._admit(now_s)
        decodes = [sequence for sequence in self.running if self._goes_on(sequence)]
        for sequence in decodes:
            sequence.decoded += 1
            self._served[sequence.group.owner] += 1
        reads = self._read(self.bounds.batch_tokens - len(decodes))
        decodes.sort(key=lambda sequence: sequence.id)
        memory, self._memory = self._memory, []
        preempted, self._preempted = self._preempted, 0
        for read in reads:
            if read.last:
                read.group.become(State.OPEN)
                admitted = [sequence for sequence in read.group.sequences if sequence.state is State.RUNNING]
                starts += [sequence for sequence in admitted if not sequence.chosen]
                # Only once this step has computed the trunk's last cells can they be shared.
                self._memory += [self._fork(sequence) for sequence in admitted if not read.group.single]
        return Step(memory, decodes, reads, starts, preempted)

    def finish(self, sequence: Sequence) -> None:
        """The candidate is done; the last one of a group ends it, and its cells become a cached prefix."""
        group = sequence.group
        if sequence.state is State.RUNNING:
            self._leave(sequence)
        sequence.become(State.DONE)
        if all(other.state is State.DONE for other in group.sequences):
            self._end(group, tail=sequence.chosen[: sequence.decoded] if group.single else [])

    def finish_reading(self, group: Group) -> None:
        """A group without candidates was read."""
        self._end(group)

    def cancel(self, group: Group) -> None:
        """The group goes, wherever it is."""
        if group.state is State.DONE:
            return
        for sequence in group.sequences:
            if sequence.state is State.RUNNING:
                self._leave(sequence)
            if sequence.state is not State.DONE:
                sequence.become(State.DONE)
        self._end(group, tail=group.sequences[0].chosen[: group.sequences[0].decoded] if group.single else [])

    # Turns

    def _enqueue(self, group: Group, *, first: bool = False) -> None:
        queue = self._queues.setdefault(group.owner, OrderedDict())
        queue[group] = None
        if first:
            queue.move_to_end(group, last=False)

    def _unqueue(self, group: Group) -> bool:
        """Takes it out of its owner's queue; False where it is in none."""
        queue = self._queues.get(group.owner)
        if queue is None or group not in queue:
            return False
        del queue[group]
        if not queue:
            del self._queues[group.owner]
        return True

    def _next_of(self, passed: set[str]) -> dict[str, Group]:
        """By owner that wants something and was not passed over, whose next candidate it is."""
        found: dict[str, Group] = {}
        for group in self._live:
            if group.waiting and group.paused_at_s is None and group.owner not in passed:
                found.setdefault(group.owner, group)
        for owner, queue in self._queues.items():
            if owner not in passed:
                found.setdefault(owner, next(iter(queue)))
        return found

    def _admit(self, now_s: float) -> list[Sequence]:
        """Admits what fits; returns the candidates that start from a prompt read in an earlier step."""
        starts: list[Sequence] = []
        passed: set[str] = set()
        while wanting := self._next_of(passed):
            owner = min(wanting, key=self._turn)
            group = wanting[owner]
            if self._fits(self._need(group)) or self._make_way(group, now_s):
                if group.state is State.WAITING:
                    self._begin(group)
                elif (sequence := self._run(group)) is not None:
                    starts.append(sequence)
            elif owner in self._shares:
                passed.add(owner)
            else:
                break
        return starts

    def _turn(self, owner: str) -> tuple[float, int]:
        """The owner with the least has the next turn."""
        return self._shares.get(owner, Amount()).share(self._whole), self._served[owner]

    def _make_way(self, group: Group, now_s: float) -> bool:
        """Preempts others so that the group's next candidate fits; False, with nothing changed, if it has to wait."""
        need = self._need(group)
        cached_ids = 0 if self.bounds.cache_ids else self.prefixes.size
        free = Amount(
            self.bounds.running - len(self.running), len(self._free_ids) + cached_ids, self.bounds.cells - self._held
        )
        claim = Claim(group, need, free, self._whole, self._shares, self._served, self.bounds.turn_tokens)
        victims = claim.victims(self._live, now_s)
        for victim in victims:
            self._preempt(victim)
        return bool(victims) and self._fits(need)

    def _begin(self, group: Group) -> None:
        self._unqueue(group)
        prefix = None if group.scored else self.prefixes.find(group.tokens)
        group.trunk = heapq.heappop(self._free_ids)
        group.become(State.READING)
        self._live[group] = None
        self._count(group, Amount(0, 0 if group.single else 1, len(group.tokens)))
        group.held = group.given = 0
        if prefix is not None:
            holder, length = prefix
            self._memory.append(Fork(holder.id, group.trunk, length))
            group.held = group.given = length
            group.cached += max(0, length - group.read)
            group.read = max(group.read, length)
        self.prefixes.add_live(group)
        if group.sequences:
            self._run(group)

    def _run(self, group: Group) -> Sequence | None:
        """Admits the group's next candidate; returns it if it starts from a prompt read in an earlier step."""
        sequence = group.next_waiting()
        sequence.become(State.RUNNING)
        sequence.id = group.trunk if group.single else heapq.heappop(self._free_ids)
        sequence.resumed_at = len(sequence.chosen)
        self.running[sequence] = None
        self._count(group, Amount(1, 1, group.max_tokens))
        if group.state is not State.OPEN:
            return None
        self._memory.append(self._fork(sequence))
        return None if sequence.chosen else sequence

    def _preempt(self, victim: Victim) -> None:
        group = victim if isinstance(victim, Group) else victim.group
        if isinstance(victim, Sequence):
            tail = victim.chosen[: victim.decoded]
            self._leave(victim)
            victim.decoded = 0
            victim.become(State.WAITING)
            self._preempted += 1
            if not group.single:
                return
        else:
            tail = []
        self._give_up(group, tail)
        group.become(State.WAITING)
        if group.paused_at_s is None:
            self._enqueue(group, first=True)
        else:
            self._stalled[group] = None

    # What is computed

    @staticmethod
    def _goes_on(sequence: Sequence) -> bool:
        """Its next token can be computed."""
        group = sequence.group
        return group.paused_at_s is None and group.state is State.OPEN and len(sequence.chosen) - sequence.decoded == 1

    def _read(self, budget: int) -> list[Read]:
        """What of the prompts, and of what preempted sequences had chosen, is computed with so many tokens."""
        wanted: dict[str, list[Read]] = {}
        for group in self._live:
            if group.state is State.READING and group.paused_at_s is None:
                again = group.held < group.read
                read = Read(group, group.held, group.read if again else len(group.tokens), again)
                wanted.setdefault(group.owner, []).append(read)
        for sequence in self.running:
            group = sequence.group
            if group.state is State.OPEN and group.paused_at_s is None and len(sequence.chosen) - sequence.decoded > 1:
                read = Read(group, sequence.decoded, len(sequence.chosen) - 1, True, sequence)
                wanted.setdefault(group.owner, []).append(read)
        if not wanted:
            return []
        scored = divide(self.bounds.scored_tokens, {owner: _size(reads, True) for owner, reads in wanted.items()})
        demands = {owner: scored[owner] + _size(reads, False) for owner, reads in wanted.items()}
        tokens = divide(budget, demands)
        return [read for owner, reads in wanted.items() for read in self._take(reads, tokens[owner], scored[owner])]

    def _take(self, reads: list[Read], budget: int, scored: int) -> list[Read]:
        """Of one owner's, those that so many tokens are enough for, the last of them in part."""
        taken = []
        for read in reads:
            count = min(read.stop - read.start, budget, scored if read.scored else budget)
            if count <= 0:
                continue
            part = Read(read.group, read.start, read.start + count, read.again, read.sequence)
            taken.append(part)
            budget -= count
            scored -= count if read.scored else 0
            self._served[read.group.owner] += count
            if part.sequence is not None:
                part.sequence.decoded = part.stop
            else:
                part.group.held = part.stop
                part.group.read = max(part.group.read, part.stop)
        return taken

    @staticmethod
    def _fork(sequence: Sequence) -> Fork:
        return Fork(sequence.group.trunk, sequence.id, len(sequence.group.tokens))

    # Cells and ids

    def _count(self, group: Group, amount: Amount) -> None:
        """The group's owner holds so much more."""
        self._held += amount.cells
        held = self._shares.get(group.owner, Amount()).plus(amount)
        if held == Amount():
            del self._shares[group.owner]
        else:
            self._shares[group.owner] = held

    @staticmethod
    def _need(group: Group) -> Amount:
        """What the group's next candidate takes."""
        if group.state is not State.WAITING:
            return Amount(1, 1, group.max_tokens)
        if not group.sequences:
            return Amount(0, 1, len(group.tokens))
        return Amount(1, 1 if group.single else 2, len(group.tokens) + group.max_tokens)

    def _fits(self, need: Amount) -> bool:
        """Whether so much is free, if need be after forgetting cached prefixes, oldest first."""
        if self._held + need.cells > self.bounds.cells or len(self.running) + need.slots > self.bounds.running:
            return False
        if self.bounds.cache_ids:
            return len(self._free_ids) >= need.ids
        while self._held + self.prefixes.cells + need.cells > self.bounds.cells or len(self._free_ids) < need.ids:
            if not self.prefixes.size:
                return False
            self._evict()
        return True

    def _evict(self) -> None:
        self._free(self.prefixes.pop_oldest().id)

    def _free(self, id: int) -> None:
        self._memory.append(Drop(id))
        cached_only = id >= self.bounds.ids - self.bounds.cache_ids
        heapq.heappush(self._free_cache_ids if cached_only else self._free_ids, id)

    def _leave(self, sequence: Sequence) -> None:
        """The sequence no longer runs."""
        del self.running[sequence]
        self._count(sequence.group, Amount().minus(Amount(1, 1, sequence.group.max_tokens)))
        if not sequence.group.single:
            self._free(sequence.id)
        sequence.id = -1

    def _end(self, group: Group, tail: list[int] | None = None) -> None:
        """The group is over; `tail` are a single candidate's tokens that are in the trunk after the prompt."""
        if group.state is State.WAITING:
            self._unqueue(group)
            self._stalled.pop(group, None)
        else:
            self._give_up(group, tail or [])
        group.become(State.DONE)
        if self.idle:
            self._served.clear()

    def _give_up(self, group: Group, tail: list[int]) -> None:
        """The group gives up its trunk; what that holds, the prompt and `tail` after it, becomes a cached prefix if it
        is worth it."""
        del self._live[group]
        self.prefixes.drop_live(group)
        self._count(group, Amount().minus(Amount(0, 0 if group.single else 1, len(group.tokens))))
        trunk, group.trunk = group.trunk, -1
        entry = Prefix.of(group.tokens, tail, trunk) if group.state is State.OPEN and not group.scored else None
        group.held = group.given = 0
        if entry is None or len(entry.tokens) > self.bounds.cache_cells:
            self._free(trunk)
            return
        self._move_to_cache(entry)
        for stale in self.prefixes.add(entry):
            self._free(stale.id)
        while self.prefixes.cells > self.bounds.cache_cells:
            self._evict()

    def _move_to_cache(self, entry: Prefix) -> None:
        if not self.bounds.cache_ids:
            return
        if not self._free_cache_ids:
            self._evict()
        target = heapq.heappop(self._free_cache_ids)
        self._memory.append(Fork(entry.id, target, len(entry.tokens)))
        self._free(entry.id)
        entry.id = target


def _size(reads: list[Read], scored: bool) -> int:
    return sum(read.stop - read.start for read in reads if read.scored is scored)
