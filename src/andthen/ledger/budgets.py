"""Budgets in memory: one owner on each machine holds what every key has spent and reserved, and answers without the
database in the plain case.

Owners share a budget by escrow (O'Neil 1986, "The Escrow Transactional Method"): an owner draws an allotment of what is
left from the database, in a transaction that keeps what is spent and all allotments together within the budget, and
spends it in memory. What is posted to the database moves out of the allotment of the owner that reserved it. Far from
the bound an owner draws a quarter of what is left; near it what a request needs and no more. An owner gives back what
it does not use, and at once when another lacks it.

What an owner has drawn, and what was posted of it, are totals that only grow but for what is given back. The owner
tells its own total with every change, so a transaction whose outcome it never heard of does no harm.

An owner holds a lease. It stops spending before the lease ends, so that nothing is spent twice once others take it for
dead and free what it held.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

import structlog
from msgspec import Struct

from andthen.ledger.periods import periods_ms
from andthen.ledger.records import Budget, Shortfall
from andthen.ledger.storage import BudgetStorage, Drawn, LeaseLost, Place, StorageError, StorageUnavailable, Want

OWNER_LEASE_S = 60.0
_SAFETY_S = 5.0
"""An owner stops spending so long before its lease ends: a transaction may be under way, and clocks drift."""
_RENEW_S = 5.0
_TICK_S = 0.5
_IDLE_S = 10.0
"""What was not used for so long is given back."""
_EXACT_S = 10.0
"""For so long after another lacked something, no more is drawn than is needed."""
_RECOVERED_EVERY_S = 0.5
_LOG = structlog.get_logger("andthen.ledger")

_T = TypeVar("_T")


class Hold(Struct, frozen=True, array_like=True):
    """What is to be reserved for a request."""

    request_id: str
    lease_owner: str
    """The process that answers the request."""
    key_id: str
    budgets: tuple[Budget, ...]
    at_ms: int
    """When the request began: it counts in the periods of that moment."""
    micros: int
    tokens: int


class Budgets(Protocol):
    """Who reserves what a request may cost, as a worker sees it."""

    @property
    def owner(self) -> str:
        """Out of whose allotments is reserved, by the time that something was."""

    def try_reserve(self, hold: Hold) -> Shortfall | bool:
        """Reserves at once where that can be done; False: `reserve` must be awaited."""

    async def reserve(self, hold: Hold) -> Shortfall | None:
        """Reserves; None, or the budget that has no room. Cancelled, it has reserved nothing once `settle` was called.

        Raises:
            StorageUnavailable
        """

    def settle(self, request_id: str, micros: int, tokens: int) -> None:
        """The request has ended, and came to this. One that holds nothing is passed over."""


class _Lane:
    """One bound of a key's budget in one period."""

    __slots__ = (
        "bound",
        "dirty",
        "drawn",
        "exact_until_s",
        "given_s",
        "place",
        "reserved",
        "spent_elsewhere",
        "used",
        "used_s",
    )

    def __init__(self, place: Place, bound: int) -> None:
        self.place = place
        self.bound = bound
        self.drawn = 0
        """Of the budget, since the owner began."""
        self.used = 0
        """Of that, by requests that have ended."""
        self.reserved = 0
        """Of that, for requests under way."""
        self.spent_elsewhere = 0
        """At least so much of the budget is spent that did not go through this owner."""
        self.exact_until_s = 0.0
        self.used_s = time.monotonic()
        """When something was last reserved, by `time.monotonic`, like `exact_until_s`."""
        self.given_s = 0.0
        """When something was last given back."""
        self.dirty = False
        """The database may have another total."""

    @property
    def free(self) -> int:
        return self.drawn - self.used - self.reserved

    def shortfall(self, budget: Budget, need: int, others: int) -> Shortfall:
        spent = self.spent_elsewhere + self.used
        held = max(0, others + self.drawn - self.used)
        return Shortfall(budget, self.place.kind, spent, held, need)


class _Held(Struct):
    lease_owner: str
    parts: list[tuple[_Lane, int]]
    """Where how much is reserved."""


Parts = list[tuple[_Lane, Budget, int, int]]
"""Lanes, each with its budget, its present bound, and what is needed there."""


class _Key:
    """A key's lanes, and the lock of who speaks to the database about them."""

    __slots__ = ("lanes", "lock")

    def __init__(self) -> None:
        self.lanes: dict[Place, _Lane] = {}
        self.lock = asyncio.Lock()


class BudgetOwner:
    """`async with BudgetOwner(storage, new_name) as budgets`. It lives in one event loop.

    Args:
        new_name: makes a name that no other owner has.
        is_recovered: whether all that a process has left is in the database; such a process is dead.
    """

    def __init__(
        self,
        storage: BudgetStorage,
        new_name: Callable[[], str],
        is_recovered: Callable[[str], bool] = lambda _lease_owner: False,
        *,
        lease_s: float = OWNER_LEASE_S,
        tick_s: float = _TICK_S,
    ) -> None:
        self.owner = new_name()
        self._storage = storage
        self._new_name = new_name
        self._is_recovered = is_recovered
        self._lease_s = lease_s
        self._tick_s = tick_s
        self._valid_until_s = 0.0
        self._renew_at_s = 0.0
        self._keys: dict[str, _Key] = {}
        self._held: dict[str, _Held] = {}
        """By the request's id."""
        self._reserving: set[str] = set()
        self._ended: set[str] = set()
        """Of those, who have ended meanwhile."""
        self._tasks: set[asyncio.Task[Shortfall | None]] = set()
        self._thread = ThreadPoolExecutor(1, "budgets")

    async def __aenter__(self) -> Self:
        with contextlib.suppress(StorageError):
            await self._ensure_lease()
        self._ticking = asyncio.create_task(self._tick(), name="andthen-budgets")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        await asyncio.wait([self._ticking, *self._tasks])
        await asyncio.to_thread(self._thread.shutdown)

    def try_reserve(self, hold: Hold) -> Shortfall | bool:
        """As the protocol says."""
        if time.monotonic() >= self._valid_until_s:
            return False
        parts = self._parts(hold)
        enough = True
        for lane, budget, bound, need in parts:
            if lane.spent_elsewhere + lane.used + need > bound:
                return lane.shortfall(budget, need, 0)
            if bound > lane.bound:
                lane.bound = bound
            if bound < lane.bound or lane.free < need:
                enough = False
        if enough:
            self._take(hold, parts)
        return enough

    async def reserve(self, hold: Hold) -> Shortfall | None:
        """As the protocol says."""
        self._reserving.add(hold.request_id)
        task = asyncio.create_task(self._reserve(hold))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # What was drawn must not be forgotten, whoever leaves meanwhile.
        return await asyncio.shield(task)

    def settle(self, request_id: str, micros: int, tokens: int) -> None:
        """As the protocol says."""
        held = self._held.pop(request_id, None)
        if held is not None:
            for lane, amount in held.parts:
                lane.reserved -= amount
                lane.used += micros if lane.place.kind == "money" else tokens
        elif request_id in self._reserving:
            self._ended.add(request_id)

    def _parts(self, hold: Hold) -> Parts:
        key = self._keys.get(hold.key_id)
        if key is None:
            key = self._keys[hold.key_id] = _Key()
        starts_ms = periods_ms(hold.at_ms)
        parts: Parts = []
        for budget in hold.budgets:
            start_ms = starts_ms[budget.window]
            if budget.micros is not None:
                place = Place(hold.key_id, budget.window, start_ms, "money")
                parts.append((_lane(key, place, budget.micros), budget, budget.micros, hold.micros))
            if budget.tokens is not None:
                place = Place(hold.key_id, budget.window, start_ms, "tokens")
                parts.append((_lane(key, place, budget.tokens), budget, budget.tokens, hold.tokens))
        return parts

    def _take(self, hold: Hold, parts: Parts) -> None:
        now_s = time.monotonic()
        for lane, _, _, need in parts:
            lane.reserved += need
            lane.used_s = now_s
        self._held[hold.request_id] = _Held(hold.lease_owner, [(lane, need) for lane, _, _, need in parts])

    async def _reserve(self, hold: Hold) -> Shortfall | None:
        try:
            return await self._reserve_or_draw(hold)
        finally:
            self._reserving.discard(hold.request_id)
            if hold.request_id in self._ended:
                self._ended.discard(hold.request_id)
                self.settle(hold.request_id, 0, 0)

    async def _reserve_or_draw(self, hold: Hold) -> Shortfall | None:
        while True:
            await self._ensure_lease()
            key = self._keys.setdefault(hold.key_id, _Key())
            async with key.lock:
                if self._keys.get(hold.key_id) is not key:
                    continue  # the lease was lost, or the key was forgotten meanwhile
                if hold.request_id in self._ended:
                    return None
                outcome = self.try_reserve(hold)
                if outcome is not False:
                    return None if outcome is True else outcome
                try:
                    return await self._draw(hold)
                except LeaseLost:
                    self._begin_anew()

    async def _draw(self, hold: Hold) -> Shortfall | None:
        parts = self._parts(hold)
        now_s = time.monotonic()
        for lane, _, bound, _ in parts:
            if bound < lane.bound:  # what was drawn under the bound of before may be too much
                lane.drawn = lane.used + lane.reserved
            lane.bound, lane.dirty = bound, True
        wants = [
            Want(lane.place, bound, lane.drawn, max(0, need - lane.free), lane.exact_until_s > now_s)
            for lane, _, bound, need in parts
        ]
        drawn: list[Drawn] = await self._ask(self._storage.draw, self.owner, wants)
        for (lane, *_), got in zip(parts, drawn, strict=True):
            lane.drawn += got.granted
            lane.spent_elsewhere = max(0, got.spent - got.posted)
            lane.dirty = False
        for (lane, budget, _, need), got in zip(parts, drawn, strict=True):
            if lane.free < need:
                if got.others:
                    lane.exact_until_s = now_s + _EXACT_S
                return lane.shortfall(budget, need, got.others)
        self._take(hold, parts)
        return None

    async def _ensure_lease(self) -> None:
        """Raises: StorageUnavailable"""
        if time.monotonic() >= self._valid_until_s:
            await self._renew()

    async def _renew(self) -> None:
        began_s = time.monotonic()
        try:
            if self._valid_until_s:
                await self._ask(self._storage.renew_owner, self.owner, self._lease_s)
            else:
                await self._ask(self._storage.begin_owner, self.owner, self._lease_s)
        except LeaseLost:
            self._begin_anew()
            raise StorageUnavailable("the lease of the budgets was lost") from None
        self._valid_until_s = began_s + self._lease_s - min(_SAFETY_S, self._lease_s / 4)
        self._renew_at_s = began_s + min(_RENEW_S, self._lease_s / 4)

    def _begin_anew(self) -> None:
        """Others have taken it for dead and freed what it held."""
        _LOG.error("budgets_lease_lost", owner=self.owner, requests=len(self._held))
        self.owner = self._new_name()
        self._valid_until_s = 0.0
        self._keys, self._held = {}, {}

    async def _tick(self) -> None:
        recovered_at_s = 0.0
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                if time.monotonic() >= self._renew_at_s:
                    await self._renew()
                if time.monotonic() >= recovered_at_s:
                    recovered_at_s = time.monotonic() + _RECOVERED_EVERY_S
                    await self._settle_recovered()
                if self._keys:
                    await self._give_back()
            except StorageError:
                continue  # the ledger's thread says so
            except Exception:
                _LOG.exception("budgets_not_looked_after")

    async def _give_back(self) -> None:
        """What others lack, and what nobody has used for a while."""
        wanted: Collection[Place] = await self._ask(self._storage.wanted, self.owner)
        now_s = time.monotonic()
        for key_id, key in list(self._keys.items()):
            lanes = [
                lane for place, lane in key.lanes.items()
                if place in wanted
                or lane.dirty
                or (lane.exact_until_s > now_s and lane.free > 0)
                or now_s - max(lane.used_s, lane.given_s) > _IDLE_S
            ]  # fmt: skip
            if lanes:
                async with key.lock:
                    await self._give_back_of(key, [lane for lane in lanes if key.lanes.get(lane.place) is lane], wanted)
            if not key.lanes and not key.lock.locked() and self._keys.get(key_id) is key:
                del self._keys[key_id]

    async def _give_back_of(self, key: _Key, lanes: list[_Lane], wanted: Collection[Place]) -> None:
        now_s = time.monotonic()
        idle: list[Place] = []
        for lane in lanes:
            if lane.place in wanted:
                lane.exact_until_s = now_s + _EXACT_S
            lane.drawn = lane.used + lane.reserved  # from here on nobody takes what is given back
            lane.dirty, lane.given_s = True, now_s
            if lane.reserved == 0 and now_s - lane.used_s > _IDLE_S:
                idle.append(lane.place)
        forgotten: Collection[Place] = await self._ask(
            self._storage.give_back, self.owner, {lane.place: lane.drawn for lane in lanes}, idle
        )
        for lane in lanes:
            lane.dirty = False
            if lane.place in forgotten:
                key.lanes.pop(lane.place, None)

    async def _settle_recovered(self) -> None:
        """What dead processes held is settled at what the database says that it came to."""
        alive = {held.lease_owner for held in self._held.values()}
        dead = {lease_owner for lease_owner in alive if self._is_recovered(lease_owner)}
        if not dead:
            return
        ids = [request_id for request_id, held in self._held.items() if held.lease_owner in dead]
        costs = await self._ask(self._storage.costs, ids)
        for request_id in ids:
            self.settle(request_id, *costs.get(request_id, (0, 0)))

    async def _ask(self, method: Callable[..., _T], *of: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: method(*of))


def _lane(key: _Key, place: Place, bound: int) -> _Lane:
    lane = key.lanes.get(place)
    if lane is None:
        lane = key.lanes[place] = _Lane(place, bound)
    return lane
