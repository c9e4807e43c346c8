"""Deadlines on a loop whose clock the test moves."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from andthen.http.deadlines import Deadlines


class Clock:
    """The part of an event loop that keeps time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[list[Any]] = []
        self.timers_set = 0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], object]) -> Clock.Handle:
        self.timers_set += 1
        timer: list[Any] = [when_s, callback]
        self.timers.append(timer)
        return Clock.Handle(self, timer)

    class Handle:
        def __init__(self, clock: Clock, timer: list[Any]) -> None:
            self.clock, self.timer = clock, timer

        def cancel(self) -> None:
            self.clock.timers.remove(self.timer)

    def move_to(self, now_s: float) -> None:
        while due := [timer for timer in self.timers if timer[0] <= now_s]:
            timer = min(due, key=lambda timer: float(timer[0]))
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer[0])
            timer[1]()
        self.now_s = now_s


def made() -> tuple[Clock, Deadlines]:
    clock = Clock()
    return clock, Deadlines(cast(asyncio.AbstractEventLoop, clock))


steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["set", "clear", "drop", "wait"]), st.integers(0, 50)), max_size=60
)


@given(steps)
def test_each_deadline_is_reached_when_it_is_due_and_only_then(steps: list[tuple[int, str, int]]) -> None:
    clock, deadlines = made()
    reached: list[tuple[int, float]] = []
    due: dict[int, float] = {}
    dropped: set[int] = set()
    all_of_them = [
        deadlines.deadline(lambda number=number: reached.append((number, clock.now_s)))  # type: ignore[misc]
        for number in range(5)
    ]
    for number, what, tenths in steps:
        if what == "wait":
            until_s = clock.now_s + tenths / 10
            expected = sorted((at_s, number) for number, at_s in due.items() if at_s <= until_s)
            before = len(reached)
            clock.move_to(until_s)
            assert sorted((at_s, number) for number, at_s in reached[before:]) == [
                (at_s, number) for at_s, number in sorted((at_s, number) for at_s, number in expected)
            ]
            due = {number: at_s for number, at_s in due.items() if at_s > until_s}
        elif number in dropped:
            continue
        elif what == "set":
            all_of_them[number].set(tenths / 10)
            due[number] = clock.now_s + tenths / 10
        else:
            getattr(all_of_them[number], what)()
            due.pop(number, None)
            if what == "drop":
                dropped.add(number)
        assert len(clock.timers) <= 1


def test_setting_and_clearing_over_and_over_sets_no_timer_anew() -> None:
    clock, deadlines = made()
    deadline = deadlines.deadline(lambda: None)
    for step in range(1000):
        deadline.set(75)
        deadline.clear()
        clock.now_s = step / 1000
    assert clock.timers_set == 1
    assert len(deadlines) == 1


def test_dropped_deadlines_leave_nothing_behind() -> None:
    clock, deadlines = made()
    kept = deadlines.deadline(lambda: None)
    kept.set(100)

    class Owner:
        def reached(self) -> None: ...

    owners = [Owner() for _ in range(5000)]
    watched = [weakref.ref(owner) for owner in owners]
    for owner in owners:
        deadline = deadlines.deadline(owner.reached)
        deadline.set(30)
        deadline.drop()
    del owner, deadline
    owners.clear()
    gc.collect()
    assert not any(watch() for watch in watched)
    assert len(deadlines) < 1000
    clock.move_to(200)
    assert len(deadlines) == 0
