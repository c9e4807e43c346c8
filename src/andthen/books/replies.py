"""Replies under an Idempotency-Key, as a server has them: made once, kept sealed, and followed by whoever asks again,
in this process, in another or on another machine. Knows no HTTP and no model.

What the making process has made of a reply goes into the database many times a second; its own followers need not
wait for that. A reply's last piece is told to nobody before all of it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from andthen.books.sealing import Seal, Unreadable
from andthen.books.settings import BooksSettings
from andthen.books.store.errors import BooksError, StoreUnavailable
from andthen.books.store.replies import Claim, Claimed, KeptParts, ReplyPlace, ReplyState

_FORGET_INTERVAL_S = 60.0
_PAY_INTERVAL_S = 1.0
_GATHER_S = 0.05
"""A reply is committed no more often: many that are made at once must not keep the ledger from its database."""
_POLL_S = 0.05
_LONGEST_POLL_S = 0.4
_TRY_AGAIN_S = 0.5
_CLAIM_WAIT_S = 2.0
"""A request whose reply can't be looked up within this is refused."""
_END_WAIT_S = 5.0
"""How long a reply's end waits for a database that is gone. Then it goes out, and is not kept."""
_THREADS = 4
"""Replies wait for a slow database in these, and keep neither the ledger's connections nor anybody else's threads."""
_LOG = structlog.get_logger("andthen.replies")

_Answer = TypeVar("_Answer")


class Start(Struct, frozen=True, tag=True):
    """A reply begins."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Data(Struct, frozen=True, tag=True, omit_defaults=True):
    """More of its body."""

    data: bytes
    last: bool = False
    """No more comes."""


class End(Struct, frozen=True, tag=True):
    """It has ended."""

    whole: bool


Piece = Start | Data | End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Start | Data]).decode


class Gone(Exception):
    """The reply is made no more: its process died, or it ended with an error that cost nothing."""


class TooLarge(Exception):
    """The reply was made, and was too large to be kept."""


class OtherBody(Exception):
    """The reply is that of another request."""


class ReplyStore(Protocol):
    """What replies are kept in. All methods block and may raise `BooksError`."""

    def claim_reply(self, claim: Claim) -> Claimed: ...

    def add_reply_part(
        self, place: ReplyPlace, number: int, sealed: bytes | None, *, state: ReplyState = "running"
    ) -> int | None: ...

    def reply_parts(self, place: ReplyPlace, first: int) -> KeptParts | None: ...

    def forget_reply(self, place: ReplyPlace) -> None: ...

    def forget_replies(self, most_bytes: int) -> int: ...


class Slip(Struct, frozen=True):
    """Who asks for what under which Idempotency-Key."""

    key_id: str
    name: bytes
    body: bytes
    seal: Seal

    @classmethod
    def of(cls, key_id: str, secret: str, idempotency_key: str, body: bytes) -> Slip:
        """Args:
        secret: the API key itself.
        body: the request's, the same for the same request.
        """
        seal = Seal(secret, f"reply {idempotency_key}")
        name = hashlib.sha256(f"{key_id} {idempotency_key}".encode()).digest()
        return cls(key_id, name, seal.digest(body), seal)

    def place(self, request_id: str) -> ReplyPlace:
        return ReplyPlace(self.key_id, self.name, request_id)


class KeptReplies:
    """`async with KeptReplies(store, holder, settings) as replies`.

    Args:
        holder: this process's name, whose lease in the ledger says that it lives.
    """

    def __init__(self, store: ReplyStore, holder: str, settings: BooksSettings) -> None:
        self.store = store
        self.settings = settings
        self._holder = holder
        self._threads = ThreadPoolExecutor(_THREADS, "replies")
        self._making: dict[str, Recording] = {}
        self._claiming: set[str] = set()
        """Requests that may be given a reply to make, and have not heard of it."""
        self._owed: set[ReplyPlace] = set()
        """Not made here any more, which the database is yet to be told."""

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_house(), name="andthen-replies")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        await self._pay()
        await asyncio.to_thread(self._threads.shutdown)

    async def claim(self, slip: Slip, request_id: str) -> Recording | AsyncIterator[Piece]:
        """A recording to be made, where nobody has the reply; else the pieces of the one that there is.

        The pieces raise `Gone` where there will be no more of them; where none has come, to claim again may help. And
        `TooLarge`, and `BooksError`.

        Raises:
            OtherBody, BooksError
        """
        place = slip.place(request_id)
        keep_ms = round(1000 * self.settings.reply_keep_s)
        claim = Claim(place=place, body=slip.body, holder=self._holder, keep_ms=keep_ms)
        self._claiming.add(request_id)
        try:
            while True:
                found = await self._claim(claim)
                if found.request_id == request_id:
                    made = self._making[request_id] = Recording(self, place, slip.seal)
                    return made
                if found.body != slip.body:
                    raise OtherBody
                if made_here := self._making.get(found.request_id):
                    return made_here.follow()
                if found.state != "running" or found.holder != self._holder:
                    return self._read(slip, found.request_id)
                if found.request_id in self._claiming:
                    await asyncio.sleep(_POLL_S)
                else:
                    claim = replace(claim, lost=found.request_id)
        finally:
            self._claiming.discard(request_id)

    def forget(self, place: ReplyPlace) -> None:
        """It is not made here any more, and not kept."""
        self._owed.add(place)

    def ended(self, place: ReplyPlace) -> None:
        """All of it was told."""
        self._making.pop(place.request_id, None)

    def ask(self, store: Callable[..., _Answer], *of: Any, **named: Any) -> asyncio.Future[_Answer]:
        """What a method of the store says."""
        return asyncio.get_running_loop().run_in_executor(self._threads, partial(store, *of, **named))

    async def _claim(self, claim: Claim) -> Claimed:
        claiming = self.ask(self.store.claim_reply, claim)
        try:
            async with asyncio.timeout(_CLAIM_WAIT_S):
                return await asyncio.shield(claiming)
        except (asyncio.CancelledError, TimeoutError) as error:
            claiming.add_done_callback(lambda _: self.forget(claim.place))
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(f"the database has told nothing for {_CLAIM_WAIT_S:g} s") from None
            raise

    async def _read(self, slip: Slip, request_id: str) -> AsyncIterator[Piece]:
        """The pieces of a reply that another process makes, or one made."""
        place, read, poll_s = slip.place(request_id), 0, _POLL_S
        while True:
            kept = await self.ask(self.store.reply_parts, place, read)
            if kept is None:
                raise Gone
            if kept.state == "large":
                raise TooLarge
            for sealed in kept.parts:
                try:
                    pieces = _decode(slip.seal.open(sealed, _label(place, read)))
                except (Unreadable, msgspec.MsgspecError) as error:
                    raise Gone from error
                read += 1
                for piece in pieces:
                    yield piece
            if kept.state != "running":
                yield End(kept.state == "whole")
                return
            if not kept.lives:
                raise Gone
            poll_s = _POLL_S if kept.parts else min(2 * poll_s, _LONGEST_POLL_S)
            await asyncio.sleep(poll_s)

    async def _keep_house(self) -> None:
        forget_at_s = 0.0
        while True:
            await asyncio.sleep(_PAY_INTERVAL_S)
            await self._pay()
            if time.monotonic() >= forget_at_s:
                forget_at_s = time.monotonic() + _FORGET_INTERVAL_S
                with contextlib.suppress(BooksError):
                    await self.ask(self.store.forget_replies, self.settings.replies_bytes)

    async def _pay(self) -> None:
        with contextlib.suppress(BooksError):
            for place in list(self._owed):
                await self.ask(self.store.forget_reply, place)
                self._owed.discard(place)


class Recording:
    """A reply that this process makes: `add` what there is of it, `end` or `drop` it, then `release`."""

    def __init__(self, replies: KeptReplies, place: ReplyPlace, seal: Seal) -> None:
        self._replies = replies
        self._place = place
        self._seal = seal
        self._pieces: list[Piece] = []
        self._last: list[Piece] = []
        """Told when all is kept."""
        self._kept = 0
        """Of the pieces, in the database."""
        self._parts = 0
        self._is_kept = True
        self._more = asyncio.Event()
        self._ends = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def add(self, piece: Start | Data) -> None:
        """One more piece, for all who follow."""
        self._tell([piece])
        if self._is_kept and (self._keeping is None or self._keeping.done()):
            self._keeping = asyncio.create_task(self._keep())

    async def end(self, last: list[Start | Data], *, whole: bool) -> None:
        """Keeps all of it; raises nothing. The last pieces are told by `release`."""
        self._last = [*last, End(whole)]
        self._ends.set()
        try:
            async with asyncio.timeout(_END_WAIT_S):
                if self._keeping is not None:
                    await asyncio.wait([self._keeping])
                if self._is_kept:
                    await self._put([*self._pieces[self._kept :], *last], "whole" if whole else "broken")
        except TimeoutError:
            _LOG.error("reply_not_kept", request=self._place.request_id)
            self._give_up()

    def drop(self, last: list[Start | Data], *, whole: bool) -> None:
        """It is not to be kept: whoever asks again begins anew."""
        self._last = [*last, End(whole)]
        self._give_up()

    def release(self) -> None:
        """Tells the end. What is not kept by now is not kept."""
        if self._keeping is not None:
            self._keeping.cancel()
        self._replies.ended(self._place)
        self._tell(self._last)

    async def follow(self) -> AsyncIterator[Piece]:
        """All pieces from the first, then those that come."""
        told = 0
        while True:
            more = self._more
            while told < len(self._pieces):
                piece = self._pieces[told]
                told += 1
                yield piece
                if isinstance(piece, End):
                    return
            await more.wait()

    def _tell(self, pieces: Sequence[Piece]) -> None:
        self._pieces += pieces
        self._more.set()
        self._more = asyncio.Event()

    def _give_up(self) -> None:
        self._is_kept = False
        if self._keeping is not None:
            self._keeping.cancel()
        self._replies.forget(self._place)

    async def _keep(self) -> None:
        """Commits what has gathered, until nothing has. What there is when it ends goes with the end."""
        while self._is_kept and self._kept < len(self._pieces):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_S):
                    await self._ends.wait()
                    return
            await self._put(self._pieces[self._kept :], "running")

    async def _put(self, pieces: Sequence[Piece], state: ReplyState) -> None:
        sealed = self._seal.close(_encode(pieces), _label(self._place, self._parts)) if pieces else None
        size = await self._add(sealed, state)
        self._kept += len(pieces)
        self._parts += sealed is not None
        if size is None:
            self._is_kept = False
        elif size > self._replies.settings.reply_bytes:
            self._is_kept = False
            await self._add(None, "large")

    async def _add(self, sealed: bytes | None, state: ReplyState) -> int | None:
        """Tries until it is known to be there. Always the same bytes: a try that failed may have written them."""
        while True:
            try:
                add = self._replies.store.add_reply_part
                return await self._replies.ask(add, self._place, self._parts, sealed, state=state)
            except BooksError:
                await asyncio.sleep(_TRY_AGAIN_S)


def _label(place: ReplyPlace, number: int) -> str:
    """What a part is: sealed for another it does not open."""
    return f"{place.request_id} {number}"
