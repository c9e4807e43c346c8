"""Replies under an Idempotency-Key: whose they are, how far they are, and how they are read again."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from andthen.books.replies import (
    Data,
    End,
    Gone,
    KeptReplies,
    OtherBody,
    Piece,
    Recording,
    ReplyStore,
    Slip,
    Start,
    TooLarge,
)
from andthen.books.sealing import Seal, Unreadable
from andthen.books.settings import BooksSettings
from andthen.books.store import SqlStore, StoreUnavailable, open_store
from andthen.books.store.replies import Claim, Claimed, ReplyPlace
from andthen.ledger.records import Intent
from tests.ledger.making import post

KEY = "key-1"
SECRET = "sk-andthen-secret"
WAIT_S = 20.0
BEGUN = Start(200, [(b"content-type", b"text/event-stream")])


def slip(name: str = "once", body: bytes = b"{}", secret: str = SECRET) -> Slip:
    return Slip.of(KEY, secret, name, body)


@asynccontextmanager
async def process(store: SqlStore, **settings: Any) -> AsyncIterator[KeptReplies]:
    """A process that lives."""
    holder = secrets.token_hex(4)
    await asyncio.to_thread(store.renew, holder, 60.0)
    async with KeptReplies(store, holder, BooksSettings(**settings)) as replies:
        yield replies


async def begun(replies: KeptReplies, request_id: str = "cmpl-1", **slipped: Any) -> Recording:
    claimed = await replies.claim(slip(**slipped), request_id)
    assert isinstance(claimed, Recording)
    return claimed


async def others(replies: KeptReplies, request_id: str = "cmpl-2", **slipped: Any) -> AsyncIterator[Piece]:
    claimed = await replies.claim(slip(**slipped), request_id)
    assert not isinstance(claimed, Recording)
    return claimed


async def joined(pieces: AsyncIterator[Piece]) -> tuple[list[Piece], bytes]:
    """Those that are no data, and the data."""
    read = [piece async for piece in pieces]
    data = b"".join(piece.data for piece in read if isinstance(piece, Data))
    return [piece for piece in read if not isinstance(piece, Data)], data


async def made(replies: KeptReplies, texts: tuple[bytes, ...], request_id: str = "cmpl-1", **slipped: Any) -> None:
    recording = await begun(replies, request_id, **slipped)
    recording.add(BEGUN)
    for text in texts[:-1]:
        recording.add(Data(text))
        await asyncio.sleep(0)
    await recording.end([Data(texts[-1])], whole=True)
    recording.release()


async def test_a_reply_is_read_again_in_the_same_process_and_in_others(any_store: SqlStore) -> None:
    async with process(any_store) as one, process(any_store) as two:
        await made(one, (b"Once ", b"upon ", b"a time"))
        for replies in (one, two):
            rest, data = await joined(await others(replies))
            assert data == b"Once upon a time"
            assert rest == [BEGUN, End(True)]


async def test_a_reply_that_is_being_made_is_followed_to_its_end(any_store: SqlStore) -> None:
    async with process(any_store) as one, process(any_store) as two:
        recording = await begun(one)
        following = [asyncio.create_task(joined(await others(replies))) for replies in (one, two)]
        recording.add(BEGUN)
        for text in (b"a", b"b", b"c"):
            recording.add(Data(text))
            await asyncio.sleep(0.02)
        await recording.end([Data(b"d")], whole=True)
        recording.release()
        for rest, data in await asyncio.gather(*following):
            assert (rest, data) == ([BEGUN, End(True)], b"abcd")


async def test_the_last_piece_waits_until_all_is_kept(any_store: SqlStore) -> None:
    async with process(any_store) as one:
        recording = await begun(one)
        recording.add(BEGUN)
        pieces = recording.follow()
        assert await anext(pieces) == BEGUN
        last = asyncio.ensure_future(anext(pieces))
        await recording.end([Data(b"all")], whole=True)
        await asyncio.sleep(0)
        assert not last.done()
        recording.release()
        assert await last == Data(b"all")


async def test_one_of_many_that_claim_at_once_gets_it(place: str | Path) -> None:
    stores = [open_store(place) for _ in range(4)]
    claims = [
        Claim(place=ReplyPlace(KEY, b"n" * 32, f"cmpl-{n}"), body=b"b" * 32, holder="h", keep_ms=60_000)
        for n in range(16)
    ]
    stores[0].renew("h", 60.0)
    found = await asyncio.gather(*(
        asyncio.to_thread(stores[n % 4].claim_reply, claim) for n, claim in enumerate(claims)
    ))  # fmt: skip
    assert len({one.request_id for one in found}) == 1
    for store in stores:
        store.close()


async def test_another_body_is_another_request(any_store: SqlStore) -> None:
    async with process(any_store) as one:
        await made(one, (b"x",))
        with pytest.raises(OtherBody):
            await one.claim(slip(body=b'{"n":2}'), "cmpl-2")
        with pytest.raises(OtherBody):
            await one.claim(slip(secret="sk-andthen-other"), "cmpl-2")


async def test_keys_of_others_and_other_names_are_apart(any_store: SqlStore) -> None:
    async with process(any_store) as one:
        await made(one, (b"x",))
        assert isinstance(await one.claim(slip("twice"), "cmpl-2"), Recording)
        assert isinstance(await one.claim(Slip.of("key-2", SECRET, "once", b"{}"), "cmpl-3"), Recording)


async def test_what_is_dropped_can_be_claimed_again(any_store: SqlStore) -> None:
    async with process(any_store) as one, process(any_store) as two:
        recording = await begun(one)
        followed = await others(two)
        recording.drop([BEGUN, Data(b"an error")], whole=True)
        pieces = recording.follow()
        recording.release()
        assert await joined(pieces) == ([BEGUN, End(True)], b"an error")
        assert isinstance(await one.claim(slip(), "cmpl-3"), Recording)
        with pytest.raises(Gone):
            await joined(followed)


async def test_a_dead_process_leaves_its_replies_to_others(any_store: SqlStore) -> None:
    async with process(any_store) as two:
        any_store.renew("dead", 60.0)
        dead = KeptReplies(any_store, "dead", BooksSettings())
        recording = await begun(dead)
        recording.add(BEGUN)
        followed = await others(two)
        assert await anext(followed) == BEGUN
        any_store.renew("dead", 0.0)
        with pytest.raises(Gone):
            await anext(followed)
        taken = await begun(two, "cmpl-3")
        recording.add(Data(b"late"))
        await recording.end([], whole=True)
        await taken.end([BEGUN, Data(b"new")], whole=True)
        taken.release()
        assert await joined(await others(two, "cmpl-4")) == ([BEGUN, End(True)], b"new")


async def test_a_reply_that_broke_off_is_told_as_broken(any_store: SqlStore) -> None:
    async with process(any_store) as one, process(any_store) as two:
        recording = await begun(one)
        recording.add(BEGUN)
        recording.add(Data(b"half"))
        await recording.end([], whole=False)
        recording.release()
        assert await joined(await others(two)) == ([BEGUN, End(False)], b"half")


async def test_one_that_is_too_large_is_told_once(any_store: SqlStore) -> None:
    async with process(any_store, reply_bytes=2048) as one, process(any_store) as two:
        await made(one, (b"x" * 1500, b"y" * 1500))
        with pytest.raises(TooLarge):
            await joined(await others(two))


async def test_nothing_can_be_read_without_the_api_key(place: str | Path) -> None:
    store = open_store(place)
    async with process(store) as one:
        await made(one, (b"a very particular text", b"."))
        kept = store.reply_parts(slip().place("cmpl-1"), 0)
    store.close()
    assert kept is not None
    assert all(b"particular" not in part for part in kept.parts)
    with pytest.raises(Unreadable):
        Seal("sk-andthen-other", "reply once").open(kept.parts[0], "cmpl-1 0")
    with pytest.raises(Unreadable):
        slip().seal.open(kept.parts[0], "cmpl-1 1")


def test_the_old_and_what_is_over_the_bound_is_forgotten(any_store: SqlStore) -> None:
    places = [ReplyPlace(KEY, bytes([n]) * 32, f"cmpl-{n}") for n in range(6)]
    any_store.renew("h", 60.0)
    for n, at in enumerate(places):
        keep_ms = -1 if n == 0 else 60_000 + n
        any_store.claim_reply(Claim(place=at, body=b"", holder="h", keep_ms=keep_ms))
        any_store.add_reply_part(at, 0, b"s" * 100, state="whole")
    assert any_store.forget_replies(2**20) == 1
    assert any_store.forget_replies(250) == 3
    assert [any_store.reply_parts(at, 0) is not None for at in places] == [False] * 4 + [True] * 2
    assert any_store.forget_replies(250) == 0


def test_a_part_that_is_written_twice_is_there_once(any_store: SqlStore) -> None:
    at = ReplyPlace(KEY, b"n" * 32, "cmpl-1")
    any_store.renew("h", 60.0)
    any_store.claim_reply(Claim(place=at, body=b"", holder="h", keep_ms=60_000))
    assert [any_store.add_reply_part(at, 0, b"part") for _ in range(2)] == [4, 4]
    kept = any_store.reply_parts(at, 0)
    assert kept is not None
    assert kept.parts == [b"part"]


class Gapped:
    """A store that is gone for a while."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.gone = False
        self.missed = 0

    def __getattr__(self, name: str) -> Any:
        if self.gone:
            self.missed += 1
            raise StoreUnavailable("gone")
        return getattr(self._store, name)


async def test_a_database_that_is_gone_for_a_moment_loses_nothing(any_store: SqlStore) -> None:
    gapped = Gapped(any_store)
    any_store.renew("h", 60.0)
    store: ReplyStore = gapped
    async with KeptReplies(store, "h", BooksSettings()) as one, process(any_store) as two:
        recording = await begun(one)
        recording.add(BEGUN)
        gapped.gone = True
        recording.add(Data(b"in the gap "))
        while not gapped.missed:
            await asyncio.sleep(0.01)
        gapped.gone = False
        await recording.end([Data(b"and after")], whole=True)
        recording.release()
        assert await joined(await others(two)) == ([BEGUN, End(True)], b"in the gap and after")


class Late:
    """A store whose first claim is made at once and answered late."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.made = threading.Event()
        self.answers = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim_reply(self, claim: Claim) -> Claimed:
        claimed = self._store.claim_reply(claim)
        if not self.made.is_set():
            self.made.set()
            self.answers.wait(WAIT_S)
        return claimed


async def test_a_claim_that_is_not_answered_yet_is_nobody_elses(
    any_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("andthen.books.replies._CLAIM_WAIT_S", WAIT_S)
    late = Late(any_store)
    any_store.renew("h", 60.0)
    store: ReplyStore = late
    async with KeptReplies(store, "h", BooksSettings()) as one:
        first = asyncio.create_task(one.claim(slip(), "cmpl-1"))
        await asyncio.to_thread(late.made.wait, WAIT_S)
        second = asyncio.create_task(one.claim(slip(), "cmpl-2"))
        await asyncio.wait([second], timeout=0.3)
        late.answers.set()
        assert isinstance(await first, Recording)
        assert not isinstance(await second, Recording)


async def test_a_claim_that_nothing_answers_is_refused_and_taken_back(any_store: SqlStore) -> None:
    late = Late(any_store)
    any_store.renew("h", 60.0)
    store: ReplyStore = late
    async with KeptReplies(store, "h", BooksSettings()) as one:
        with pytest.raises(StoreUnavailable):
            await one.claim(slip(), "cmpl-1")
        late.answers.set()
        assert isinstance(await one.claim(slip(), "cmpl-2"), Recording)


def test_a_reply_that_has_ended_is_not_lost(any_store: SqlStore) -> None:
    """Who read that it is being made may hear only after its end that nobody here makes it."""
    one, two = (ReplyPlace(KEY, b"n" * 32, f"cmpl-{n}") for n in (1, 2))
    any_store.renew("h", 60.0)
    any_store.claim_reply(Claim(place=one, body=b"", holder="h", keep_ms=60_000))
    any_store.add_reply_part(one, 0, b"all", state="whole")
    claimed = any_store.claim_reply(Claim(place=two, body=b"", holder="h", keep_ms=60_000, lost="cmpl-1"))
    assert (claimed.request_id, claimed.state) == ("cmpl-1", "whole")


def test_a_request_that_is_under_way_keeps_its_reply_though_its_lease_ran_out(any_store: SqlStore) -> None:
    """A database that was gone took no renewal: the ledger tells who is dead."""
    one, two = (ReplyPlace(KEY, b"n" * 32, f"cmpl-{n}") for n in (1, 2))
    any_store.renew("one", 60.0)
    any_store.claim_reply(Claim(place=one, body=b"", holder="one", keep_ms=60_000))
    post(any_store, [Intent(id="cmpl-1", key_id=KEY, lease_owner="one", model="m", started_at_ms=1)])
    any_store.renew("one", -1.0)
    claim = Claim(place=two, body=b"", holder="two", keep_ms=60_000)
    assert any_store.claim_reply(claim).request_id == "cmpl-1"
    assert any_store.release_lost(["one"]) == 1
    assert any_store.claim_reply(claim).request_id == "cmpl-2"


def test_what_is_claimed_anew_is_not_forgotten_for_what_was_there(postgres: str) -> None:
    open_store(postgres, migrate=True).close()
    one, two = (ReplyPlace(KEY, b"n" * 32, f"cmpl-{n}") for n in (1, 2))
    with closing(open_store(postgres)) as store, closing(open_store(postgres)) as other:
        store.renew("h", 60.0)
        store.claim_reply(Claim(place=one, body=b"", holder="h", keep_ms=-1))
        store.add_reply_part(one, 0, b"old", state="whole")

        def claim_between(*executing: Any) -> None:
            if "DELETE" in executing[2] and other.reply_parts(two, 0) is None:
                other.claim_reply(Claim(place=two, body=b"", holder="h", keep_ms=60_000))

        event.listen(store._engine, "before_cursor_execute", claim_between)
        store.forget_replies(2**20)
        assert store.add_reply_part(two, 0, b"new", state="whole") == 3


class Unsure(Gapped):
    """A store that is gone before it can say that it has written a part."""

    def add_reply_part(self, *part: Any, **state: Any) -> int | None:
        size = self._store.add_reply_part(*part, **state)
        if self.gone:
            self.gone = False
            raise StoreUnavailable("gone")
        return size


async def test_a_part_of_which_nobody_knows_whether_it_is_there_is_neither_lost_nor_doubled(
    any_store: SqlStore,
) -> None:
    unsure = Unsure(any_store)
    any_store.renew("h", 60.0)
    store: ReplyStore = unsure
    async with KeptReplies(store, "h", BooksSettings()) as one, process(any_store) as two:
        recording = await begun(one)
        unsure.gone = True
        recording.add(BEGUN)
        while unsure.gone:
            await asyncio.sleep(0.01)
        recording.add(Data(b"in the gap "))
        await recording.end([Data(b"and after")], whole=True)
        recording.release()
        assert await joined(await others(two)) == ([BEGUN, End(True)], b"in the gap and after")


class Counted:
    """A store that knows what it was given of a reply."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.parts: list[bytes | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def add_reply_part(self, place: ReplyPlace, number: int, sealed: bytes | None, **state: Any) -> int | None:
        self.parts.append(sealed)
        return self._store.add_reply_part(place, number, sealed, **state)


async def test_a_reply_that_is_made_at_once_is_one_commit_and_a_long_one_few(any_store: SqlStore) -> None:
    counted = Counted(any_store)
    any_store.renew("h", 60.0)
    store: ReplyStore = counted
    async with KeptReplies(store, "h", BooksSettings()) as one:
        await made(one, (b"all of it",))
        assert len(counted.parts) == 1
        await made(one, (b"a",) * 200, "cmpl-2", name="long")
        assert len(counted.parts) < 20
        assert (await joined(await others(one, "cmpl-3", name="long")))[1] == b"a" * 200
