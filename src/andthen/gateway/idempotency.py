"""`Idempotency-Key`: the first request with a key is worked on to its end, whether its client stays or not. A repeated
request gets the same reply, from its first byte, and nothing is done or billed twice.

The work is a request like any other, with a recording in place of a client. An error that cost nothing is sent to those
who wait for it and not stored, so that another try starts anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec

from andthen.books.replies import Data, Gone, OtherBody, Piece, Recording, Slip, Start, TooLarge
from andthen.books.store import BooksError
from andthen.contract.errors import BadRequest, EngineRestarted, IdempotencyConflict, LedgerUnavailable, ModelNotFound
from andthen.contract.request import CompletionRequest, parse
from andthen.descriptors import or_refusal
from andthen.gateway.context import RequestContext
from andthen.gateway.error_handler import run_handler
from andthen.gateway.settlement import open_account, settle

HEADER = "Idempotency-Key"
_MOST_CHARACTERS = 255
_FIRST_REPLY_ONLY = (b"x-ratelimit-", b"x-andthen-cache", b"age", b"server-timing")
"""How the headers begin that are true for the first request only."""
_LENGTH = b"content-length"
_REPLAYED = (b"idempotent-replayed", b"true")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])

Run = Callable[[RequestContext], Awaitable[None]]


def idempotency_key(ctx: RequestContext) -> str | None:
    """The header's value. Raises: BadRequest"""
    if ctx.header(b"idempotency-key") is None:
        return None
    sent = [value for name, value in ctx.http.headers if name == b"idempotency-key"]
    text = sent[0].decode("latin-1")
    if len(sent) > 1 or not (1 <= len(text) <= _MOST_CHARACTERS and text.isascii() and text.isprintable()):
        raise BadRequest(
            f"`{HEADER}` is one header of 1 to {_MOST_CHARACTERS} printable ASCII characters, a UUID say.", param=HEADER
        )
    return text


async def complete_once(ctx: RequestContext, key: str, run: Run) -> None:
    """Sends the reply under this Idempotency-Key: made by `run` in a task of its own, or the one that is stored."""
    open_account(ctx)
    try:
        body = await ctx.body()
        recording = await _claim_or_replay(ctx, key, body)
    except BaseException as error:
        await settle(ctx, error)
        raise
    if recording is not None:
        ctx.billing = None  # the work has a row of its own, under the same id
        recorded = _RecordedRequest(ctx, body, recording)
        ctx.services.detach(recorded.run(run))
        try:
            await _play(ctx, recording.follow(), replayed=False)
        finally:
            recorded.leave(ctx)


async def _claim_or_replay(ctx: RequestContext, key: str, body: bytes) -> Recording | None:
    request = ctx.request = parse(body, ctx.services.limits)
    slip = Slip.of(ctx.key_id or "", ctx.secret or "", key, _normal(body))
    while True:
        try:
            claimed = await ctx.services.replies.claim(slip, ctx.id)
            if isinstance(claimed, Recording):
                return claimed
            await _replay(ctx, request, claimed)
        except OtherBody:
            raise IdempotencyConflict(
                f"This `{HEADER}` was used with another body, or before the API key was rotated: use a new one.",
                param=HEADER,
            ) from None
        except TooLarge:
            raise IdempotencyConflict(
                f"The reply under this `{HEADER}` was made, and was too large to be stored: use a new one to ask "
                "again, or raise `books.reply_bytes`.",
                param=HEADER,
            ) from None
        except BooksError as error:
            raise or_refusal(
                LedgerUnavailable("The reply can't be looked up at the moment: send the request again.")
            ) from error
        except Gone:
            if ctx.status is not None:
                raise EngineRestarted("The process that made this reply died: send the request again.") from None
        else:
            return None


async def _replay(ctx: RequestContext, request: CompletionRequest, pieces: AsyncIterator[Piece]) -> None:
    ctx.origin = "replay"
    with contextlib.suppress(ModelNotFound):  # it may have been removed since
        ctx.asked_deployment = ctx.services.catalog.find(request.model)
    await _play(ctx, pieces, replayed=True)


async def _play(ctx: RequestContext, pieces: AsyncIterator[Piece], *, replayed: bool) -> None:
    """Sends a reply as it was, or is being, made. A replay is settled before its last byte is sent."""
    start: Start | None = None
    async for piece in pieces:
        if isinstance(piece, Start):
            start = piece
            if _is_stream(piece):
                _start(ctx, piece, replayed=replayed)
            continue
        if replayed and (not isinstance(piece, Data) or piece.last):
            await settle(ctx, status=None if start is None else start.status)
        # A whole reply's head waits for its body: until then it can be found out whether the client is still there.
        if ctx.status is None and start is not None:
            _start(ctx, start, replayed=replayed)
        if not isinstance(piece, Data):
            if not piece.whole:
                await ctx.break_off(b"")  # the error is in what was sent
        elif piece.last:
            ctx.http.end(piece.data)
        else:
            ctx.http.write(piece.data)
            await ctx.drain()


def _is_stream(start: Start) -> bool:
    return (b"content-type", b"text/event-stream") in start.headers


def _start(ctx: RequestContext, start: Start, *, replayed: bool) -> None:
    headers = [header for header in start.headers if not (replayed and header[0].startswith(_FIRST_REPLY_ONLY))]
    length = next((int(value) for name, value in headers if name == _LENGTH), None)
    headers = [header for header in headers if header[0] != _LENGTH]
    ctx.streams = _is_stream(start)
    ctx.start(start.status, [*headers, _REPLAYED] if replayed else headers, length=length)


class _RecordedRequest:
    """A request whose reply is recorded instead of sent: in place of a `ServerRequest`."""

    gone = False
    write_paused = False
    body_complete = True
    on_gone: Callable[[], object] | None = None
    on_writable: Callable[[], object] | None = None
    on_probe: Callable[[], object] | None = None

    def __init__(self, ctx: RequestContext, body: bytes, recording: Recording) -> None:
        client = ctx.http
        self.method, self.path, self.query, self.address = client.method, client.path, client.query, client.address
        self.headers, self.header = client.headers, client.header
        self.length = len(body)
        self._body = body
        self._recording = recording
        self._last: list[Start | Data] = []
        self._is_whole = False
        self._caller_left = False
        self._ctx = inner = RequestContext(self, ctx.services)
        inner.id, inner.route_name, inner.key, inner.account = ctx.id, ctx.route_name, ctx.key, ctx.account
        inner.started_s = ctx.started_s
        inner.settles_later = True

    async def body(self, limit: int) -> bytes:  # noqa: ARG002 - it was checked when it was read
        return self._body

    async def run(self, run: Run) -> None:
        """Makes the reply and stores it; then settles the request; then the reply's end is sent."""
        ctx = self._ctx
        try:
            await run_handler(ctx, run)
        except BaseException:
            self._recording.drop([], whole=False)
            raise
        else:
            try:
                if ctx.has_cost or (self._is_whole and (ctx.status or 500) < 400):
                    await self._recording.end(self._last, whole=self._is_whole)
                else:
                    self._recording.drop(self._last, whole=self._is_whole)
            finally:  # also if the server stops meanwhile
                ctx.settles_later = False
                await settle(ctx)
        finally:
            self._recording.release()
            if self._caller_left and ctx.tokens is not None:
                ctx.services.metrics.model(ctx.answering.label).count_tokens(ctx.tokens)

    def leave(self, ctx: RequestContext) -> None:
        """The caller's own request is over: what is known goes into its metrics and its log line. Tokens that become
        known later are counted when the work ends."""
        inner = self._ctx
        self._caller_left = inner.tokens is None
        ctx.code, ctx.tokens, ctx.backend_s, ctx.note = inner.code, inner.tokens, inner.backend_s, inner.note
        ctx.deployment = inner.deployment

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None = None) -> None:
        if length is not None:
            headers = [*headers, (_LENGTH, b"%d" % length)]
        self._recording.add(Start(status, [header for header in headers if header[0] != b"x-request-id"]))

    def write(self, data: bytes) -> None:
        if data:
            self._recording.add(Data(data))

    def end(self, data: bytes = b"") -> None:
        self._last, self._is_whole = [Data(data, last=True)], True

    async def drain(self) -> None:
        """A recording takes everything."""

    def cut(self, last: bytes = b"") -> None:
        """The reply ends where it is."""


def _normal(body: bytes) -> bytes:
    """The same whatever the order of the members. Their values stay undecoded: they may be anything."""
    return msgspec.json.encode(_MEMBERS.decode(body), order="sorted")
