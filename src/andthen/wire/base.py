"""What every language of a vendor is: an exchange described, and read. Pure: another performs it.

A language is a struct, one for each file beside this one. Its fields are what differs between the servers that speak
it (its dialect, filled in from a vendor's row), its methods the three of `Wire`. The files do not know one another.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from andthen.contract.errors import AndthenError
from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest

Headers = tuple[tuple[str, str], ...]


class Target(Struct, frozen=True, kw_only=True):
    """Whom a call is for."""

    vendor: str
    """How messages name it: `OpenAI`."""
    address: str
    """The base of all its URLs, without a slash at the end: `https://api.openai.com/v1`."""
    model: str
    """The vendor's own name of the model."""
    key: str = ""
    """The secret that opens it; empty where none is needed. Several parts (AWS) come as the row says."""
    headers: Headers = ()
    """More headers, from the row or the operator."""
    secrets: tuple[str, ...] = ()
    """Of this and all other vendors: what no text from upstream may tell."""
    at_s: float = 0.0
    """Unix time of the call: a signature bears it."""


class Call(Struct, frozen=True, kw_only=True):
    """An HTTP exchange described, not performed."""

    url: str
    headers: Headers
    """`content-type` and the key among them; names in lower case."""
    body: bytes
    streams: bool
    """The reply is to be read as it comes."""
    method: str = "POST"


class Refusal(Struct, frozen=True):
    """A reply whose status is not 200."""

    status: int
    headers: Headers
    """Names in lower case."""
    body: bytes
    """Its first 64 KiB."""


class Decoder(Protocol):
    """Reads one reply; any cut of its bytes into pieces gives the same events.

    It yields, numbered within the call: `PromptScored` where the vendor told prompt tokens before the text, or scored
    the prompt (`echo` with `logprobs` in the request); `Text`, whose tokens all bear the offset 0 (offsets are set
    later) and whose `generated` counts tokens as far as they can be seen; one `Finished` for each candidate; and last
    one `Usage`, where the vendor told it.
    """

    fingerprint: str | None
    """The reply's `system_fingerprint`, once it was told; None where the language has none."""

    def feed(self, data: bytes) -> list[Event]:
        """Takes the next bytes of the body.

        Raises:
            AndthenError: the vendor tells an error in its stream, or breaks its format (`UpstreamGarbled`). Where the
                same bytes brought events before that, these are returned, and the next call raises, also for no bytes.
        """

    def end(self) -> list[Event]:
        """The body has ended.

        Raises:
            UpstreamGarbled: before the reply was complete.
        """


class Wire(Protocol):
    """A language."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        """Describes the call that asks for `request`.

        Args:
            request: what a plan made of a caller's request for one call. The fields in `request.given` are sent, and
                `max_tokens` always; nothing else is.
            streams: whether the reply shall come as it is made.
        """

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        """Reads the reply to that call, if its status is 200."""

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        """What to raise for a reply with another status."""


def bearer_call(target: Target, path: str, body: object, *, streams: bool) -> Call:
    """Posts a JSON body below the target's address, with its key as a bearer token where it has one."""
    key = (("authorization", f"Bearer {target.key}"),) if target.key else ()
    return Call(
        url=target.address + path,
        headers=(("content-type", "application/json"), *key, *target.headers),
        body=msgspec.json.encode(body),
        streams=streams,
    )
