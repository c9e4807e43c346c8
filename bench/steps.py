"""What the steps of a remote request cost alone, without sockets: pure functions on prepared replies."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from andthen.contract.events import Event
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.contract.response import Completion, Head, Stream
from andthen.plan.plan import Plan, plan
from andthen.plan.spread import Spread
from andthen.vendors.settings import Remote
from andthen.wire.base import Wire
from bench.cpu import time_us
from bench.replies import CHUNKS, LANGUAGES, Prepared

ABOUT = f"""\
The steps alone, without sockets, on prepared replies of {CHUNKS} tokens: the request's body read and checked, planned,
written for the vendor; the whole reply read, turned and written. Of a stream the share of one chunk: read from the
vendor's bytes, turned (numbered, scanned for stops, counted), written as the caller's bytes.
"""
_HEAD = ("parse", "plan", "encode", "reply", "chunk: read", "turned", "written", "in all")
_AT = Head("cmpl-0123456789abcdef01234567", 1790000000, "bench/draft", None)


def steps() -> Iterator[str]:
    """The table."""
    yield "| CPU µs | " + " | ".join(_HEAD) + " |"
    yield "|---|" + "---|" * len(_HEAD)
    for name, prepare in LANGUAGES.items():
        *request, read, turned, written = _Steps(name, prepare()).times_us()
        cells = [f"{us:,.0f}" for us in request] + [f"{us:,.1f}" for us in (read, turned, written)]
        yield f"| {name} | {' | '.join(cells)} | {read + turned + written:,.1f} |"
    yield ""


class _Steps:
    def __init__(self, language: str, prepared: Prepared) -> None:
        key = "AKID\nSECRET" if language == "bedrock_converse" else "secret"
        self._remote = Remote(
            vendor="Vendor", address="https://bedrock-runtime.us-east-1.test", language=language, key=key
        )
        self._target = self._remote.target("draft-1", at_s=1790000000.0)
        resolved = self._remote.resolved()
        self._wire: Wire = resolved.wire()
        self._abilities = resolved.abilities("bench/draft", Limits())
        self._prepared = prepared
        fields = {"model": "bench/draft", "prompt": "once upon a time " * 30, "max_tokens": CHUNKS, "temperature": 0.7}
        self._body = msgspec.json.encode(fields)
        self._whole = self._request(stream=False)
        self._streamed = self._request(stream=True)
        self._events = self._read()
        self._turned = self._turn()

    def times_us(self) -> tuple[float, ...]:
        pieces = len(self._prepared.pieces)
        part = Spread(*self._whole).parts[0].request
        return (
            time_us(lambda: parse(self._body, Limits())),
            time_us(lambda: plan(self._whole[0], self._abilities, [])),
            time_us(lambda: self._wire.encode(part, self._target, streams=False)),
            time_us(self._reply),
            time_us(self._read) / pieces,
            time_us(self._turn) / pieces,
            time_us(self._write) / pieces,
        )

    def _request(self, *, stream: bool) -> tuple[CompletionRequest, Plan]:
        request = msgspec.structs.replace(parse(self._body, Limits()), stream=stream)
        return request, plan(request, self._abilities, [])

    def _reply(self) -> bytes:
        request, planned = self._whole
        spread, completion = Spread(request, planned), Completion(request)
        (part,) = spread.parts
        spread.begin(part)
        decoder = self._wire.decoder(part.request, self._target, streams=False)
        events = spread.feed(part, [*decoder.feed(self._prepared.whole), *decoder.end()])
        spread.close(part)
        for event in (*events, *spread.end()):
            completion.feed([event])
        return completion.body(_AT)

    def _read(self) -> list[list[Event]]:
        decoder = self._wire.decoder(Spread(*self._streamed).parts[0].request, self._target, streams=True)
        return [*map(decoder.feed, self._prepared.pieces), decoder.end()]

    def _turn(self) -> list[list[Event]]:
        spread = Spread(*self._streamed)
        (part,) = spread.parts
        spread.begin(part)
        turned = []
        for events in self._events:
            turned.append(spread.feed(part, events))
            spread.wanted(part)
        return [*turned, spread.end()]

    def _write(self) -> list[bytes]:
        stream = Stream(self._streamed[0], _AT)
        return [stream.feed(events) for events in self._turned]
