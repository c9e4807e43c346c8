"""`Idempotency-Key`: the first request of its kind is worked on to its end, whether its client stays or not; whoever
sends it again gets the same reply, from its first byte, and nothing is done or billed twice.

The work is a request like any other, with a recording in place of a client. An error that cost nothing is told to those
who wait for it and not kept, so that another try begins anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from andthen.books.replies import Data, Gone, OtherBody, Piece, Recording, Slip, Start, TooLarge
from andthen.books.store import BooksError
from andthen.contract.errors import BadRequest, EngineRestarted, IdempotencyConflict, LedgerUnavailable, ModelNotFound
from andthen.contract.request import CompletionRequest, parse
from andthen.descriptors import or_refusal
from andthen.server.access import sent_secret
from andthen.server.answering import answer
from andthen.server.booking import Booking
from andthen.server.http import Exchange, Headers, Message
from andthen.server.protocol import SCOPE_KEY
from andthen.server.services import Services

HEADER = "Idempotency-Key"
_MOST_CHARACTERS = 255
_OF_THE_FIRST = (b"x-ratelimit-", b"x-andthen-cache", b"age", b"server-timing")
"""How the headers begin that tell of the first request alone."""
_REPLAYED = (b"idempotent-replayed", b"true")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])

Run = Callable[[Services, Exchange, Booking], Awaitable[None]]


def idempotency_key(exchange: Exchange) -> str | None:
    """What the header says. Raises: BadRequest"""
    sent = [value for name, value in exchange.headers if name == b"idempotency-key"]
    if not sent:
        return None
    text = sent[0].decode("latin-1")
    if len(sent) > 1 or not (1 <= len(text) <= _MOST_CHARACTERS and text.isascii() and text.isprintable()):
        raise BadRequest(
            f"`{HEADER}` is one header of 1 to {_MOST_CHARACTERS} printable ASCII characters, a UUID say.", param=HEADER
        )
    return text


async def complete_once(services: Services, exchange: Exchange, key: str, run: Run) -> None:
    """The reply under this Idempotency-Key: made by `run` in a task of its own, or the one that there is."""
    booking = Booking(services, exchange)
    try:
        body = await exchange.body()
        recording = await _claim_or_replay(services, exchange, booking, key, body)
    except BaseException as error:
        await booking.settle(error)
        raise
    if recording is not None:
        made = _Made(recording)
        inner = made.exchange(exchange, body, services)
        services.detach(made.run(services, inner, run))
        try:
            await _play(exchange, recording.follow(), replayed=False)
        finally:
            made.is_told = inner.usage is not None
            exchange.model, exchange.code = inner.model, inner.code
            exchange.usage, exchange.source_s, exchange.note = inner.usage, inner.source_s, inner.note


async def _claim_or_replay(
    services: Services, exchange: Exchange, booking: Booking, key: str, body: bytes
) -> Recording | None:
    request = parse(body, services.limits)
    booking.note(request)
    slip = Slip.of(exchange.key_id or "", sent_secret(exchange) or "", key, _normal(body))
    while True:
        try:
            claimed = await services.replies.claim(slip, exchange.id)
            if isinstance(claimed, Recording):
                return claimed
            await _replay(services, exchange, booking, request, claimed)
        except OtherBody:
            raise IdempotencyConflict(
                f"This `{HEADER}` was used with another body, or before the API key was rotated: use a new one.",
                param=HEADER,
            ) from None
        except TooLarge:
            raise IdempotencyConflict(
                f"The reply under this `{HEADER}` was made, and was too large to be kept: use a new one to ask again, "
                "or raise `books.reply_bytes`.",
                param=HEADER,
            ) from None
        except BooksError as error:
            raise or_refusal(
                LedgerUnavailable("The reply can't be looked up at the moment: send the request again.")
            ) from error
        except Gone:
            if exchange.status is not None:
                raise EngineRestarted("What made this reply is gone: send the request again.") from None
        else:
            return None


async def _replay(
    services: Services, exchange: Exchange, booking: Booking, request: CompletionRequest, pieces: AsyncIterator[Piece]
) -> None:
    booking.origin = "replay"
    with contextlib.suppress(ModelNotFound):  # it may have left since
        services.catalog.find(request.model)
        booking.name(request.model)
    await _play(exchange, pieces, replayed=True, before_end=booking.settle)


async def _nothing() -> None:
    pass


async def _play(
    exchange: Exchange,
    pieces: AsyncIterator[Piece],
    *,
    replayed: bool,
    before_end: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Sends a reply as it was, or is being, made.

    Args:
        before_end: awaited before the last byte goes out.
    """
    async for piece in pieces:
        if isinstance(piece, Start):
            headers = [header for header in piece.headers if not (replayed and header[0].startswith(_OF_THE_FIRST))]
            exchange.streams = (b"content-type", b"text/event-stream") in headers
            await exchange.start(piece.status, [*headers, _REPLAYED] if replayed else headers)
        elif isinstance(piece, Data):
            if piece.last:
                await before_end()
            await exchange.write(piece.data, more=not piece.last)
        elif not piece.whole:
            await before_end()
            await exchange.break_off(b"")  # the error stands in what was sent


class _Made:
    """A reply in the making: to the work, the connection that it writes to."""

    gone = False
    write_paused = False
    body_is_here = True
    on_gone: Callable[[], object] | None = None
    probe: Callable[[], object] | None = None

    def __init__(self, recording: Recording) -> None:
        self.is_told = True
        """What was used is counted with the request that asked first: that is there still, or knew it when it left."""
        self._recording = recording
        self._last: list[Start | Data] = []
        self._is_whole = False

    def exchange(self, asked: Exchange, body: bytes, services: Services) -> Exchange:
        """The same request, answered here."""

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        scope: dict[str, Any] = {
            SCOPE_KEY: self, "method": asked.method, "path": asked.path, "query_string": asked.query,
            "headers": asked.headers, "client": (asked.address, 0),
        }  # fmt: skip
        made = Exchange(scope, receive, self._put, services.settings)
        made.id, made.route, made.key, made.account = asked.id, asked.route, asked.key, asked.account
        made.started_s = asked.started_s
        return made

    async def run(self, services: Services, exchange: Exchange, run: Run) -> None:
        """Makes the reply, and keeps it; then it is settled, and then its end is told."""
        booking = Booking(services, exchange)
        booking.waits = True
        try:
            await answer(services, exchange, lambda own: run(services, own, booking))
        except BaseException:
            self._recording.drop([], whole=False)
            raise
        else:
            try:
                if booking.has_cost or (self._is_whole and (exchange.status or 500) < 400):
                    await self._recording.end(self._last, whole=self._is_whole)
                else:
                    self._recording.drop(self._last, whole=self._is_whole)
            finally:  # also where the server stops meanwhile
                booking.waits = False
                await booking.settle()
        finally:
            self._recording.release()
            if not self.is_told and exchange.model is not None and exchange.usage is not None:
                services.metrics.model(exchange.model).count_tokens(exchange.usage)

    async def _put(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = [header for header in message["headers"] if header[0] != b"x-request-id"]
            self._recording.add(Start(message["status"], headers))
        elif message["more_body"]:
            if message["body"]:
                self._recording.add(Data(message["body"]))
        else:
            self._last, self._is_whole = [Data(message["body"], last=True)], True

    def begin(self) -> None:
        """The body was read."""

    def cut(self) -> None:
        """The reply ends where it is."""

    abort = cut


def _normal(body: bytes) -> bytes:
    """The same whatever the order of the members. What they are stays unread, as in `parse`: it may be anything."""
    return msgspec.json.encode(_MEMBERS.decode(body), order="sorted")
