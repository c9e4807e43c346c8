"""The scheduler's plans, attacked: a shadow pool carries them out and knows every cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from andthen.engine.preemption import divide
from andthen.engine.scheduler import Bounds, Drop, Fork, Scheduler, Step
from andthen.engine.sequence import Group, Sequence, State

STEP_S = 0.1


class Pool:
    """What llama.cpp's unified cache does: a cell belongs to every sequence that shares it, free when none does."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self.tokens: list[int] = []
        """What was written, by cell."""

    def fork(self, source: int, target: int, length: int) -> None:
        assert target not in self.cells, f"sequence {target} is in two hands"
        assert len(self.cells[source]) >= length
        self.cells[target] = self.cells[source][:length]

    def drop(self, id: int) -> None:
        self.cells.pop(id, None)

    def write(self, id: int, position: int, token: int) -> None:
        cells = self.cells.setdefault(id, [])
        assert len(cells) == position, "a token is decoded at its place, once"
        cells.append(len(self.tokens))
        self.tokens.append(token)

    def text(self, id: int) -> list[int]:
        return [self.tokens[cell] for cell in self.cells[id]]

    @property
    def used(self) -> int:
        return len({cell for cells in self.cells.values() for cell in cells})


class Driver:
    """Carries out plans as the loop does, with tokens that depend on nothing but the sequence."""

    def __init__(self, bounds: Bounds) -> None:
        self.scheduler = Scheduler(bounds)
        self.pool = Pool()
        self.groups: list[Group] = []
        self.started: dict[Sequence, int] = {}
        self.ends: dict[Sequence, int] = {}
        self.scored: dict[Group, list[int]] = {}
        self.now_s = 0.0

    def add(self, group: Group, ends: list[int]) -> None:
        self.groups.append(group)
        self.ends.update(zip(group.sequences, ends, strict=False))
        self.scheduler.add(group)

    def step(self) -> Step:
        self.now_s += STEP_S
        plan = self.scheduler.plan(self.now_s)
        for change in plan.memory:
            match change:
                case Fork(source, target, length):
                    self.pool.fork(source, target, length)
                case Drop(id):
                    self.pool.drop(id)
        self.check(plan)
        for sequence in plan.decodes:
            self.pool.write(sequence.id, sequence.position - 1, sequence.chosen[-1])
            text = [*sequence.group.tokens.tolist(), *sequence.chosen]
            assert self.pool.text(sequence.id) == text, "its own text and nothing else"
        for read in plan.reads:
            for offset, token in enumerate(read.tokens):
                self.pool.write(read.id, read.position + offset, token)
            if read.scored:
                self.scored.setdefault(read.group, []).extend(range(read.start, read.stop))
        assert self.pool.used <= self.scheduler.bounds.cells, "more cells than the pool has"
        for sequence in plan.starts:
            assert not sequence.chosen
            assert self.pool.text(sequence.group.trunk) == sequence.group.tokens.tolist()
            self.started[sequence] = self.started.get(sequence, 0) + 1
        for sequence in [*plan.decodes, *plan.starts]:
            sequence.chosen.append(len(sequence.chosen) + sequence.number)
            if len(sequence.chosen) >= self.ends[sequence]:
                self.scheduler.finish(sequence)
        for read in plan.reads:
            if read.last and not read.group.sequences:
                self.scheduler.finish_reading(read.group)
        return plan

    def turn(self, group: Group, *, paused: bool) -> None:
        if paused:
            self.scheduler.pause(group, self.now_s)
        else:
            self.scheduler.resume(group)

    def check(self, plan: Step) -> None:
        bounds = self.scheduler.bounds
        assert plan.tokens <= bounds.batch_tokens
        assert sum(r.stop - r.start for r in plan.reads if r.scored) <= bounds.scored_tokens
        holders = [sequence.id for sequence in self.scheduler.running if not sequence.group.single]
        holders += [group.trunk for group in self.groups if group.trunk >= 0]
        holders += [entry.id for entry in self.scheduler.prefixes._entries]
        assert len(holders) == len(set(holders)), "a sequence id is in two hands"
        assert all(0 <= id < bounds.ids for id in holders)
        assert len(self.scheduler.running) <= bounds.running
        held = sum(len(group.tokens) for group in self.groups if group.state in (State.READING, State.OPEN))
        held += sum(sequence.group.max_tokens for sequence in self.scheduler.running)
        assert held == self.scheduler.cells_held
        assert held + self.scheduler.prefixes.cells <= bounds.cells
        if bounds.cache_ids:
            border = bounds.ids - bounds.cache_ids
            assert all((entry.id >= border) for entry in self.scheduler.prefixes._entries)
            assert all(sequence.id < border for sequence in self.scheduler.running)
        for read in plan.reads:
            assert not read.group.scored or read.group.cached == 0


def prompt(length: int, kind: int) -> np.ndarray:
    """Prompts of one kind share their beginning."""
    return np.array([kind] * (length - 1) + [100 + length], np.int32)


SHARED = Bounds(cells=160, ids=12, running=5, batch_tokens=24, scored_tokens=8, cache_cells=60, turn_tokens=4)
STREAMS = Bounds(
    cells=9 * 160, ids=9, running=5, batch_tokens=24, scored_tokens=8, cache_cells=320, cache_ids=2, turn_tokens=4
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(bounds=st.sampled_from([SHARED, STREAMS]))
    def begin(self, bounds: Bounds) -> None:
        self.driver = Driver(bounds)

    @rule(
        owner=st.sampled_from("abc"),
        length=st.integers(1, 70),
        kind=st.integers(0, 2),
        max_tokens=st.integers(0, 60),
        candidates=st.integers(1, 7),
        scored=st.booleans(),
        ends=st.lists(st.integers(1, 60), min_size=7, max_size=7),
    )
    def add(
        self, owner: str, length: int, kind: int, max_tokens: int, candidates: int, scored: bool, ends: list[int]
    ) -> None:
        width = candidates if max_tokens else 0
        group = Group(owner, prompt(length, kind), max_tokens=max_tokens, candidates=width, scored=scored or not width)
        if length + (max_tokens if width else 0) <= self.driver.scheduler.bounds.cells:
            self.driver.add(group, [min(end, max_tokens) for end in ends])

    @rule(steps=st.integers(1, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.driver.step()

    @precondition(lambda self: self.driver.groups)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        self.driver.scheduler.cancel(self.driver.groups[which % len(self.driver.groups)])

    @precondition(lambda self: self.driver.groups)
    @rule(which=st.integers(0, 1000), paused=st.booleans())
    def pause(self, which: int, paused: bool) -> None:
        """A reader falls behind or goes on."""
        group = self.driver.groups[which % len(self.driver.groups)]
        if group.sequences:
            self.driver.turn(group, paused=paused)

    @precondition(lambda self: self.driver.scheduler.running)
    @rule(which=st.integers(0, 1000))
    def stop(self, which: int) -> None:
        """A sequence's stop is seen after its last step, when it may have been preempted."""
        begun = [sequence for sequence in self.driver.ends if sequence.chosen and sequence.state is not State.DONE]
        if begun:
            self.driver.scheduler.finish(begun[which % len(begun)])

    @invariant()
    def starts_are_single(self) -> None:
        assert all(count == 1 for count in self.driver.started.values())

    def teardown(self) -> None:
        """Whatever came before, everybody's work ends, and nothing is left but cached prefixes."""
        for group in self.driver.groups:
            self.driver.turn(group, paused=False)
        for _ in range(20_000):
            if self.driver.scheduler.idle:
                break
            self.driver.step()
        assert self.driver.scheduler.idle, "somebody starves"
        assert all(group.state is State.DONE for group in self.driver.groups)
        assert not self.driver.scheduler.shares
        for group, positions in self.driver.scored.items():
            assert positions == list(range(len(positions))), "each position is scored once"
            assert len(positions) <= len(group.tokens)
        assert self.driver.scheduler.cells_held == 0
        while self.driver.scheduler.prefixes.size:
            self.driver.scheduler._evict()
        self.driver.step()
        assert self.driver.pool.used == 0
        free = [*self.driver.scheduler._free_ids, *self.driver.scheduler._free_cache_ids]
        assert sorted(free) == list(range(self.driver.scheduler.bounds.ids))


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)


def run_until_idle(driver: Driver) -> list[Step]:
    steps = []
    while not driver.scheduler.idle:
        steps.append(driver.step())
    return steps


def test_candidates_share_one_reading_of_their_prompt() -> None:
    driver = Driver(Bounds(cells=4096, ids=64, running=32, batch_tokens=64))
    driver.add(Group("a", prompt(400, 1), max_tokens=10, candidates=32), [10] * 32)
    steps = run_until_idle(driver)
    assert sum(read.stop - read.start for step in steps for read in step.reads) == 400
    assert sum(len(step.decodes) for step in steps) == 32 * 9  # the last token of each is never decoded


def test_candidates_that_do_not_fit_at_once_run_in_waves() -> None:
    driver = Driver(Bounds(cells=100, ids=64, running=32, batch_tokens=64))
    driver.add(Group("a", prompt(40, 1), max_tokens=20, candidates=9), [20] * 9)
    steps = run_until_idle(driver)
    assert max(len(step.decodes) for step in steps) == 3
    assert len(driver.started) == 9


def test_a_prompt_goes_on_from_what_another_left() -> None:
    driver = Driver(Bounds(cells=400, ids=16, running=8, batch_tokens=64, cache_cells=200))
    first = Group("a", prompt(50, 1), max_tokens=5, candidates=1)
    driver.add(first, [5])
    run_until_idle(driver)
    second = Group("b", np.concatenate([first.tokens, [0, 1, 2, 3, 77]]).astype(np.int32), max_tokens=5, candidates=1)
    driver.add(second, [5])
    run_until_idle(driver)
    assert first.cached == 0
    assert second.cached == 54  # the prompt and the four generated tokens that were decoded


def test_the_last_prompt_token_is_always_computed() -> None:
    driver = Driver(Bounds(cells=400, ids=16, running=8, batch_tokens=64, cache_cells=200))
    for _ in range(2):
        driver.add(Group("a", prompt(50, 1), max_tokens=2, candidates=1), [2])
        steps = run_until_idle(driver)
    assert sum(read.stop - read.start for step in steps for read in step.reads) == 1


def test_a_scored_prompt_takes_nothing_from_the_cache() -> None:
    driver = Driver(Bounds(cells=400, ids=16, running=8, batch_tokens=64, cache_cells=200))
    driver.add(Group("a", prompt(50, 1), max_tokens=2, candidates=1), [2])
    run_until_idle(driver)
    scored = Group("a", prompt(50, 1), max_tokens=2, candidates=1, scored=True)
    driver.add(scored, [2])
    run_until_idle(driver)
    assert scored.cached == 0


def test_turns_go_to_the_owner_served_least() -> None:
    driver = Driver(Bounds(cells=4000, ids=16, running=2, batch_tokens=64))
    greedy = [Group("greedy", prompt(10, 1), max_tokens=50, candidates=1) for _ in range(20)]
    for group in greedy:
        driver.add(group, [50])
    for _ in range(60):
        driver.step()
    modest = Group("modest", prompt(10, 2), max_tokens=50, candidates=1)
    driver.add(modest, [50])
    while modest.state is not State.DONE:
        driver.step()
    waiting = [group for group in greedy if group.state is State.WAITING]
    assert len(waiting) >= 14, "one request of a new owner waits for a free place, not for a queue of twenty"


def test_one_request_of_many_candidates_does_not_shut_out_another_owner() -> None:
    driver = Driver(Bounds(cells=4000, ids=40, running=4, batch_tokens=64))
    wide = Group("wide", prompt(10, 1), max_tokens=20, candidates=64)
    driver.add(wide, [20] * 64)
    for _ in range(25):
        driver.step()
    other = Group("other", prompt(10, 2), max_tokens=20, candidates=1)
    driver.add(other, [20])
    steps = 0
    while other.state is not State.DONE:
        driver.step()
        steps += 1
    assert steps < 60
    assert wide.waiting


def test_a_big_request_is_not_overtaken_for_ever() -> None:
    driver = Driver(Bounds(cells=200, ids=40, running=8, batch_tokens=64))
    for _ in range(4):
        driver.add(Group("a", prompt(10, 1), max_tokens=30, candidates=1), [30])
    driver.step()
    big = Group("a", prompt(100, 2), max_tokens=100, candidates=1)
    driver.add(big, [100])
    for _ in range(40):
        driver.add(Group("a", prompt(10, 1), max_tokens=30, candidates=1), [30])
    for _ in range(60):
        driver.step()
    assert big.state in (State.READING, State.OPEN)


SLOTS = Bounds(cells=40 * 100, ids=24, running=20, batch_tokens=64, cache_cells=400, cache_ids=4, turn_tokens=4)


def running_of(driver: Driver, owner: str) -> int:
    return sum(sequence.group.owner == owner for sequence in driver.scheduler.running)


def want(driver: Driver, owner: str, count: int, *, candidates: int = 1, kind: int = 1) -> list[Group]:
    groups = [Group(owner, prompt(10, kind), max_tokens=80, candidates=candidates) for _ in range(count)]
    for group in groups:
        driver.add(group, [80] * candidates)
    return groups


@pytest.mark.parametrize(
    ("wants", "gets"),
    [
        pytest.param({"a": (30, 1)}, {"a": 20}, id="alone it has all"),
        pytest.param({"a": (30, 1), "b": (30, 1)}, {"a": 10, "b": 10}, id="two share"),
        pytest.param({"a": (30, 1), "b": (3, 1)}, {"a": 17, "b": 3}, id="what one does not want the other has"),
        pytest.param({"a": (30, 1), "b": (30, 1), "c": (2, 1)}, {"a": 9, "b": 9, "c": 2}, id="three"),
        pytest.param({"a": (1, 30), "b": (30, 1)}, {"a": 9, "b": 10}, id="one wide request counts as many"),
    ],
)
def test_owners_that_come_later_get_their_share_soon(wants: dict[str, tuple[int, int]], gets: dict[str, int]) -> None:
    driver = Driver(SLOTS)
    for owner, (count, candidates) in wants.items():
        want(driver, owner, count, candidates=candidates)
        for _ in range(10):
            driver.step()
    found = {owner: running_of(driver, owner) for owner in gets}
    assert all(abs(found[owner] - gets[owner]) <= 1 for owner in gets), found
    assert sum(found.values()) >= 19, "nothing is left unused"


def test_one_place_is_shared_in_time() -> None:
    driver = Driver(Bounds(cells=100, ids=4, running=1, batch_tokens=16, turn_tokens=4))
    (long,) = want(driver, "a", 1)
    for _ in range(20):
        driver.step()
    short = Group("b", prompt(5, 2), max_tokens=4, candidates=1)
    driver.add(short, [4])
    for _ in range(10):
        driver.step()
    assert short.state is State.DONE
    run_until_idle(driver)
    assert long.sequences[0].chosen == list(range(80))


@pytest.mark.parametrize("owner", ["a", "b"])
def test_the_place_of_a_paused_sequence_goes_to_who_wants_it(owner: str) -> None:
    driver = Driver(Bounds(cells=100, ids=4, running=1, batch_tokens=16))
    (unread,) = want(driver, "a", 1)
    for _ in range(5):
        driver.step()
    driver.turn(unread, paused=True)
    for _ in range(20):
        driver.step()
    assert running_of(driver, "a") == 1, "it keeps its place while nobody wants it"
    (other,) = want(driver, owner, 1, kind=2)
    for _ in range(100):
        driver.step()
    assert other.state is State.DONE
    assert unread.state is State.WAITING
    driver.turn(unread, paused=False)
    run_until_idle(driver)
    assert unread.sequences[0].chosen == list(range(80))


def test_a_short_prompt_is_not_read_behind_those_of_another_owner() -> None:
    driver = Driver(Bounds(cells=40_000, ids=64, running=32, batch_tokens=64))
    for _ in range(30):
        driver.add(Group("a", prompt(500, 1), max_tokens=0, candidates=0, scored=True), [])
    driver.step()
    short = Group("b", prompt(20, 2), max_tokens=1, candidates=1)
    driver.add(short, [1])
    driver.step()
    assert short.state is State.DONE


@pytest.mark.parametrize(
    ("whole", "wanted", "parts"),
    [
        (10, {}, {}),
        (10, {"a": 100}, {"a": 10}),
        (10, {"a": 100, "b": 2}, {"a": 8, "b": 2}),
        (10, {"a": 100, "b": 50}, {"a": 5, "b": 5}),
        (1, {"a": 3, "b": 2, "c": 1}, {"a": 0, "b": 0, "c": 1}),
        (0, {"a": 3}, {"a": 0}),
    ],
)
def test_a_step_is_divided_equally(whole: int, wanted: dict[str, int], parts: dict[str, int]) -> None:
    assert divide(whole, wanted) == parts


def test_impossible_transitions_are_refused() -> None:
    group = Group("a", prompt(4, 1), max_tokens=1, candidates=1)
    with pytest.raises(AssertionError, match="waiting → open"):
        group.become(State.OPEN)
