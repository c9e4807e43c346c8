"""One battery over the homes of kept replies, then what is particular to each."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from andthen.cache.memory import LARGEST_SHARE, MemoryStore
from andthen.cache.shared import SharedStore
from andthen.cache.store import ReplyStore
from tests.books.limiting import REDIS, fresh_prefix, redis_of_its_own, until

MIB = 2**20
PATIENT_S = 5.0
"""So that a machine at work passes for no Redis that is gone."""


@pytest.fixture(params=["memory", "redis"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ReplyStore, ReplyStore, ReplyStore]]:
    """Two that share what they keep (in memory one twice), and one that keeps nothing for long."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            memory = MemoryStore(MIB, 100.0)
            yield memory, memory, MemoryStore(MIB, 0.05)
        else:
            prefix = fresh_prefix()
            made = [SharedStore(REDIS, keep_s, timeout_s=PATIENT_S, prefix=prefix) for keep_s in (100.0, 100.0, 0.05)]
            one, other, short = [await stack.enter_async_context(store) for store in made]
            yield one, other, short


Stores = tuple[ReplyStore, ReplyStore, ReplyStore]


async def test_what_was_put_last_is_found_by_all_who_share(stores: Stores) -> None:
    one, other, _ = stores
    name, kept = secrets.token_bytes(32), bytes(range(256)) * 20
    assert await one.get(name) is None
    await one.put(name, kept)
    assert await other.get(name) == kept
    await other.put(name, b"newer")
    assert await one.get(name) == b"newer"
    assert await one.get(secrets.token_bytes(32)) is None


async def test_nothing_is_kept_beyond_its_time(stores: Stores) -> None:
    *_, short = stores
    name = secrets.token_bytes(32)
    await short.put(name, b"x")

    async def gone() -> bool:
        return await short.get(name) is None

    await until(gone, "it is forgotten")


async def test_a_call_that_is_cancelled_hurts_no_other(stores: Stores) -> None:
    one, other, _ = stores
    names = [secrets.token_bytes(32) for _ in range(20)]
    for turns, name in enumerate(names):
        putting = asyncio.create_task(one.put(name, name * 100))
        for _ in range(turns):
            await asyncio.sleep(0)
        putting.cancel()
        await asyncio.wait([putting])
    for name in names:
        assert await other.get(name) in (None, name * 100)
    await one.put(names[0], b"still")
    assert await other.get(names[0]) == b"still"


class Plain:
    """The rule in its plainest words: what was asked for last, up to the bound."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: OrderedDict[bytes, bytes] = OrderedDict()

    def size(self) -> int:
        return sum(len(name) + len(kept) + 256 for name, kept in self.kept.items())

    def put(self, name: bytes, kept: bytes) -> None:
        self.kept.pop(name, None)
        if len(name) + len(kept) + 256 <= self.most // LARGEST_SHARE:
            self.kept[name] = kept
            while self.size() > self.most:
                self.kept.popitem(last=False)

    def get(self, name: bytes) -> bytes | None:
        if name in self.kept:
            self.kept.move_to_end(name)
        return self.kept.get(name)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 12), st.sampled_from([0, 500, 766, 767])), min_size=60, max_size=120
    )
)
def test_memory_keeps_what_was_asked_for_last_within_its_bytes(steps: list[tuple[bool, int, int]]) -> None:
    async def play() -> None:
        sizes = [0]
        plain, store = Plain(8192), MemoryStore(8192, 100.0, sizes.append)
        for puts, number, size in steps:
            name = b"%02d" % number
            if puts:
                plain.put(name, b"x" * size)
                await store.put(name, b"x" * size)
                assert sizes[-1] == plain.size()
            else:
                assert await store.get(name) == plain.get(name)
            assert max(sizes) <= 8192

    asyncio.run(play())


async def test_time_passes_in_memory_by_a_clock_that_goes_forward() -> None:
    now_s = [0.0]
    sizes: list[int] = []
    store = MemoryStore(MIB, 10.0, sizes.append, lambda: now_s[0])
    await store.put(b"name", b"x")
    now_s[0] = 9.9
    assert await store.get(b"name") == b"x"
    now_s[0] = 10.0
    assert await store.get(b"name") is None
    assert sizes[-1] == 0


async def test_while_redis_is_gone_nothing_is_found_and_nothing_fails(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server, capture_logs() as logs:
        async with SharedStore(server.url, 100.0) as store:
            await store.put(b"name", b"x")
            server.kill()
            assert await store.get(b"name") is None
            await store.put(b"name", b"y")
            server.start()

            async def found() -> bool:
                await store.put(b"name", b"z")
                return await store.get(b"name") == b"z"

            await until(found, "it is back")
    told = [(line["event"], line["use"]) for line in logs if line["event"].startswith("redis_")]
    assert told == [("redis_gone", "cache"), ("redis_back", "cache")], "once each"


async def test_a_redis_that_was_never_there_is_no_error() -> None:
    async with SharedStore("redis://127.0.0.1:1/0", 100.0) as store:
        await store.put(b"name", b"x")
        assert await store.get(b"name") is None


async def test_a_redis_that_stalls_is_waited_for_once(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server:
        async with SharedStore(server.url, 100.0) as store:
            await store.put(b"name", b"x")
            server.signal(signal.SIGSTOP)
            assert await store.get(b"name") is None
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert [await store.get(b"name") for _ in range(100)] == [None] * 100
            assert loop.time() - began_s < 100 * 0.25, "each alone would have waited"
            server.signal(signal.SIGCONT)

            async def found() -> bool:
                return await store.get(b"name") == b"x"

            await until(found, "it answers again")


async def test_a_redis_that_is_full_keeps_nothing_and_fails_nobody(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server:
        server.kill()
        server.start("--maxmemory", "1", "--maxmemory-policy", "noeviction")
        async with SharedStore(server.url, 100.0) as store:
            await store.put(b"name", b"x")
            assert await store.get(b"name") is None
