"""What the operator may set about the server. Knows no file, no environment variable and no default from elsewhere:
`config` fills it, and the documentation of the options is printed from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

FIRST_PORT = 8000
LAST_PORT = 8019

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    """Port to listen on; 0 lets the system choose. Unset: 8000, else the next free one up to 8019."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that serve HTTP. One serves in the supervising process itself."""
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """How long running requests may go on after SIGTERM or SIGINT, before they are ended with an error."""
    body_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 16 * 2**20
    """Largest request body; past it 413."""
    header_bytes: Annotated[int, Meta(ge=1024, le=2**20)] = 64 * 2**10
    """Largest request line and headers together; past it 431."""
    header_timeout_s: Seconds = 30.0
    """How long a request's line and headers may take; past it 408."""
    body_stall_s: Seconds = 30.0
    """How long a body may pause; past it 408."""
    write_stall_s: Seconds = 60.0
    """How long a reader may take nothing of its reply; past it the connection is aborted and the work cancelled."""
    keep_alive_s: Annotated[int, Meta(ge=1, le=3600)] = 75
    """How long an idle connection is kept."""
    stream_open_after_s: Seconds = 15.0
    """How long a stream's status line waits for the first event, so that an early error is an ordinary HTTP error."""
    stream_silence_s: Seconds = 15.0
    """After so much silence a stream gets a comment, which keeps clients and proxies from giving up."""
    done_frame: Literal["auto", "always", "never"] = "auto"
    """Whether streams end with `data: [DONE]`. `auto`: except for the clients that fail on it."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API, such as `https://example.org`; none by default. Never with credentials."""
    metrics_key: str | None = None
    """If set, `/metrics` takes this key (as `x-api-key` or bearer token) and no other."""
    open_on_loopback: tuple[Literal["metrics", "tokenizer"], ...] = ()
    """Routes that need no key from a program on this machine, where `host` is a loopback address: `metrics` is
    `/metrics`, unless it has a key of its own, `tokenizer` the tokenizer routes. Never behind a proxy on this machine:
    what it passes on can look as if it came from here. Pages of other sites that a browser shows stay shut out."""
    access_log: bool = True
    """One log line per request; never with anything of a prompt, a completion or a key."""
