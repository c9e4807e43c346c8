"""What runs next: continuous batching over one pool of cells.

Pure: every decision is a value (`Step`) that the loop carries out and tests can attack. A cell holds one token's keys
and values. The unit of admission is a sequence: a prompt's cells, counted once while any of its candidates lives, and
`max_tokens` cells for each candidate, so that what was admitted can always finish. Cells that sequences share through
the prefix cache are counted for each of them: the true use never passes the count.

Turns are given to owners by tokens served, least first (virtual token counter: Sheng et al. 2024, arXiv:2401.00588);
within an owner, a request's remaining candidates come before its next request. Whoever's turn it is waits until it
fits, and nobody overtakes: so no big request starves.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque

from msgspec import Struct

from andthen.engine.prefixes import Prefix, PrefixCache
from andthen.engine.sequence import Group, Sequence, State


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
    """

    cells: int
    ids: int
    running: int
    batch_tokens: int
    scored_tokens: int = 128
    cache_cells: int = 0
    cache_ids: int = 0


class Fork(Struct, frozen=True):
    """`target` shares the first `length` cells of `source`."""

    source: int
    target: int
    length: int


class Drop(Struct, frozen=True):
    """The sequence id gives up its cells."""

    id: int


class Read(Struct, frozen=True):
    """Prompt tokens [start, stop) go into the batch."""

    group: Group
    start: int
    stop: int

    @property
    def last(self) -> bool:
        return self.stop == len(self.group.tokens)


class Step(Struct, frozen=True):
    """One turn of the engine, in the order in which it is carried out."""

    memory: list[Fork | Drop]
    decodes: list[Sequence]
    """Each decodes its next chosen token."""
    reads: list[Read]
    starts: list[Sequence]
    """Each gets its first token from the logits of its prompt's last position, now or read in an earlier step."""

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
        self._queues: OrderedDict[str, deque[Group]] = OrderedDict()
        self._live: dict[Group, None] = {}
        self._served: dict[str, int] = {}
        self._free_ids = list(range(bounds.ids - bounds.cache_ids))
        self._free_cache_ids = list(range(bounds.ids - bounds.cache_ids, bounds.ids))
        self._unadmitted = 0
        self._held = 0
        self._memory: list[Fork | Drop] = []

    @property
    def idle(self) -> bool:
        return not self._live and not self._queues

    @property
    def cells_held(self) -> int:
        """Cells reserved for what runs."""
        return self._held

    def add(self, group: Group) -> None:
        """Queues a group of which one candidate fits into the empty pool."""
        owner = group.owner
        if owner not in self._queues:
            self._queues[owner] = deque()
        if not self._is_live(owner) and len(self._queues[owner]) == 0:
            # Having been away is no credit: an owner starts level with the least served of those present.
            present = [self._served[other] for other in self._present() if other != owner]
            self._served[owner] = max(self._served.get(owner, 0), min(present, default=0))
        self._queues[owner].append(group)

    def plan(self) -> Step:
        """What runs next; it counts as done."""
        starts = self._admit() if self._queues or self._unadmitted else []
        decodes = [
            sequence for sequence in self.running if not sequence.paused and len(sequence.chosen) > sequence.decoded
        ]
        for sequence in decodes:
            sequence.decoded += 1
            self._served[sequence.group.owner] += 1
        reads = self._read(self.bounds.batch_tokens - len(decodes))
        decodes.sort(key=lambda sequence: sequence.id)
        memory, self._memory = self._memory, []
        for read in reads:
            if read.last:
                read.group.become(State.OPEN)
                begun = [sequence for sequence in read.group.sequences if sequence.state is State.RUNNING]
                starts += begun
                # Only once this step has computed the trunk's last cells can they be shared.
                self._memory += [self._fork(sequence) for sequence in begun if not read.group.single]
        return Step(memory, decodes, reads, starts)

    def finish(self, sequence: Sequence) -> None:
        """The candidate is done; the last one of a group ends it, and its cells become a cached prefix."""
        group = sequence.group
        if sequence.state is State.RUNNING:
            del self.running[sequence]
            self._held -= group.max_tokens
        sequence.become(State.DONE)
        self._release(sequence)
        if all(other.state is State.DONE for other in group.sequences):
            self._end(group, tail=sequence.chosen[: sequence.decoded] if group.single else [])

    def finish_reading(self, group: Group) -> None:
        """A group without candidates was read."""
        self._end(group)

    def cancel(self, group: Group) -> None:
        """The group goes, wherever it is."""
        if group.state is State.DONE:
            return
        if group.state is State.WAITING:
            queue = self._queues[group.owner]
            queue.remove(group)
            if not queue:
                del self._queues[group.owner]
            group.become(State.DONE)
            return
        for sequence in group.sequences:
            if sequence.state is State.RUNNING:
                del self.running[sequence]
                self._held -= group.max_tokens
                self._release(sequence)
            if sequence.state is not State.DONE:
                sequence.become(State.DONE)
        self._unadmitted -= len(group.sequences) - group.admitted
        self._end(group, tail=group.sequences[0].chosen[: group.sequences[0].decoded] if group.single else [])

    # Turns

    def _present(self) -> list[str]:
        return list(dict.fromkeys([*(group.owner for group in self._live), *self._queues]))

    def _is_live(self, owner: str) -> bool:
        return any(group.owner == owner for group in self._live)

    def _turns(self) -> list[str]:
        """The owners with something to admit, least served first."""
        wanting = dict.fromkeys([*(group.owner for group in self._live if group.has_unadmitted), *self._queues])
        return sorted(wanting, key=self._served.__getitem__)

    def _admit(self) -> list[Sequence]:
        """Admits what fits; returns the candidates that start from a prompt read in an earlier step."""
        starts: list[Sequence] = []
        while len(self.running) < self.bounds.running and (turns := self._turns()):
            admitted = self._admit_one(turns[0], starts)
            if not admitted and not self.running and not any(g.state is State.READING for g in self._live):
                # All that holds cells waits for a turn that can't come while they are held: let siblings finish.
                admitted = any(self._admit_sibling(owner, starts) for owner in turns)
            if not admitted:
                break
        return starts

    def _admit_one(self, owner: str, starts: list[Sequence]) -> bool:
        if any(group.has_unadmitted for group in self._live if group.owner == owner):
            return self._admit_sibling(owner, starts)
        group = self._queues[owner][0]
        if not self._make_room(self._need(group), ids=1 if group.single or not group.sequences else 2):
            return False
        self._queues[owner].popleft()
        if not self._queues[owner]:
            del self._queues[owner]
        self._begin(group)
        return True

    def _admit_sibling(self, owner: str, starts: list[Sequence]) -> bool:
        group = next((group for group in self._live if group.owner == owner and group.has_unadmitted), None)
        if group is None or not self._make_room(group.max_tokens, ids=1):
            return False
        sequence = self._run(group)
        if group.state is State.OPEN:
            starts.append(sequence)
            self._memory.append(self._fork(sequence))
        return True

    def _begin(self, group: Group) -> None:
        prefix = None if group.scored else self.prefixes.find(group.tokens)
        group.trunk = heapq.heappop(self._free_ids)
        group.become(State.READING)
        self._live[group] = None
        self._held += len(group.tokens)
        if prefix is not None:
            holder, length = prefix
            self._memory.append(Fork(holder.id, group.trunk, length))
            group.read = group.cached = length
        self.prefixes.add_live(group)
        self._unadmitted += len(group.sequences)
        if group.sequences:
            self._run(group)

    def _run(self, group: Group) -> Sequence:
        sequence = group.sequences[group.admitted]
        group.admitted += 1
        self._unadmitted -= 1
        sequence.become(State.RUNNING)
        sequence.id = group.trunk if group.single else heapq.heappop(self._free_ids)
        self.running[sequence] = None
        self._held += group.max_tokens
        return sequence

    def _read(self, budget: int) -> list[Read]:
        reads = []
        scored = self.bounds.scored_tokens
        for group in self._live:
            if group.state is not State.READING:
                continue
            count = min(len(group.tokens) - group.read, budget, scored if group.scored else budget)
            if count <= 0:
                continue
            reads.append(Read(group, group.read, group.read + count))
            group.read += count
            budget -= count
            scored -= count if group.scored else 0
            self._served[group.owner] += count
        return reads

    @staticmethod
    def _fork(sequence: Sequence) -> Fork:
        return Fork(sequence.group.trunk, sequence.id, len(sequence.group.tokens))

    # Cells and ids

    def _need(self, group: Group) -> int:
        return len(group.tokens) + (group.max_tokens if group.sequences else 0)

    def _make_room(self, cells: int, ids: int) -> bool:
        """Whether so many cells and ids are free, if need be after forgetting cached prefixes, oldest first."""
        if self._held + cells > self.bounds.cells:
            return False
        if self.bounds.cache_ids:
            return len(self._free_ids) >= ids
        while self._held + self.prefixes.cells + cells > self.bounds.cells or len(self._free_ids) < ids:
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

    def _release(self, sequence: Sequence) -> None:
        if not sequence.group.single:
            self._free(sequence.id)
        sequence.id = -1

    def _end(self, group: Group, tail: list[int] | None = None) -> None:
        """The group is over: what its trunk holds, the prompt and for a single candidate the tokens `tail` after it,
        becomes a cached prefix if it is worth it."""
        read_whole = group.state is State.OPEN
        group.become(State.DONE)
        del self._live[group]
        self.prefixes.drop_live(group)
        self._held -= len(group.tokens)
        if self.idle:
            self._served.clear()
        trunk, group.trunk = group.trunk, -1
        entry = Prefix.of(group.tokens, tail or [], trunk) if read_whole and not group.scored else None
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
