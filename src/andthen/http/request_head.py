"""Writes the heads of requests. Pure."""

from __future__ import annotations

import re

from andthen.http.connect import USER_AGENT, Origin, Proxy
from andthen.wire.base import Call, Headers

_MAX_HEADS = 16

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = frozenset(("connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"))
"""What decides where a message ends, or what may come back, is not for others to set."""


class RequestHeads:
    """The heads of the requests for one URL, each made once."""

    __slots__ = ("_heads", "_origin", "_proxy", "_target")

    def __init__(self, origin: Origin, target: str, proxy: Proxy | None) -> None:
        """Args:
        proxy: it gets the requests themselves, not a tunnel.
        """
        self._origin = origin
        self._target = target
        self._proxy = proxy
        self._heads: dict[tuple[str, Headers], bytes] = {}

    def head(self, call: Call) -> bytes:
        """With its empty line. Raises ValueError: a header can't be sent."""
        key = (call.method, call.headers)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()  # a signature is another one each time
            head = request_head(call.method, self._origin, self._target, call.headers, proxy=self._proxy)
            self._heads[key] = head
        if call.body or call.method not in ("GET", "HEAD"):
            return b"%bcontent-length: %d\r\n\r\n" % (head, len(call.body))
        return head + b"\r\n"


def request_head(method: str, origin: Origin, target: str, headers: Headers, *, proxy: Proxy | None = None) -> bytes:
    """All of it but `content-length` and the empty line.

    Args:
        target: path and query, sent as they are.
        headers: they replace those of the same name that every request has.
        proxy: it gets the request itself, so it is told the whole URL and its credentials.

    Raises:
        ValueError: a header can't be sent.
    """
    names = {name.lower() for name, _ in headers}
    if names & _OURS or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError("a header that can't be sent")
    if any(_UNSENDABLE.search(value) for _, value in headers):
        raise ValueError("a value that can't be sent")
    place = f"http://{origin.authority}" if proxy is not None else ""
    lines = [f"{method} {place}{target} HTTP/1.1\r\n"]
    for name, value in (("host", origin.host_header), ("accept", "*/*"), ("accept-encoding", "identity")):
        # Decompressing costs a stream its pace where the server fills its compressor's blocks first: none is asked for.
        if name not in names:
            lines.append(f"{name}: {value}\r\n")
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    head = "".join(lines).encode()
    if "user-agent" not in names:
        head += USER_AGENT
    if proxy is not None and proxy.authorization:
        head += b"proxy-authorization: %b\r\n" % proxy.authorization
    return head
