"""How a connection to an upstream server is made: URL, addresses, proxy, TLS."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import re
import socket
import ssl
from asyncio import get_running_loop
from collections.abc import Sequence
from functools import cache
from ipaddress import IPv4Address, ip_address
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from andthen import __version__
from andthen.descriptors import spare_for_upstream
from andthen.http.response_parser import MalformedResponse, ResponseParser, State
from andthen.vendors.addresses import is_public
from andthen.vendors.settings import Access

USER_AGENT = f"user-agent: andthen/{__version__}\r\n".encode()

Address = tuple[int, int, int, str, tuple[Any, ...]]
"""As `getaddrinfo` returns it: family, type, protocol, canonical name, address."""

_NEXT_ADDRESS_AFTER_S = 0.25
"""RFC 8305, section 5: how long one address is tried before the next is tried beside it."""
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[\w.-]+))(?::(?P<port>\d{1,5}))?", re.A
)
_ENDS_IN_A_NUMBER = re.compile(r"(?:^|\.)(?:\d+|0[xX][0-9A-Fa-f]*)\.?\Z")
_PORTS = {"http": 80, "https": 443}


class PrivateAddress(OSError):
    """Not to be connected to."""


class ProxyUnreachable(OSError):
    """There is no connection to the proxy."""


class ProxyRefused(OSError):
    """The proxy did not open a tunnel."""

    def __init__(self, status: int) -> None:
        """Args:
        status: what it answered; 0 if that was not HTTP.
        """
        super().__init__(status)
        self.status = status


class Origin(Struct, frozen=True):
    """A server."""

    encrypted: bool
    host: str
    """A name, or an IP address without brackets; in lower case."""
    port: int

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def authority(self) -> str:
        """Host and port, as `CONNECT` names them."""
        return f"{self.bracketed}:{self.port}"

    @property
    def host_header(self) -> str:
        """The port is left out where it is the scheme's own: signatures are made over it so."""
        return self.bracketed if self.port == _PORTS["https" if self.encrypted else "http"] else self.authority


class Proxy(Struct, frozen=True):
    origin: Origin
    authorization: bytes
    """The value of `proxy-authorization`; empty without credentials."""


def parse_url(url: str) -> tuple[Origin, str]:
    """The server, and the target of a request's first line, byte for byte: a signature may stand on it.

    Raises:
        ValueError: it can't be sent.
    """
    origin, user, target = _parse(url)
    if user is not None:
        raise ValueError("a URL with a user")
    return origin, target


@cache
def parse_proxy(url: str) -> Proxy | None:
    """Raises ValueError."""
    if not url:
        return None
    origin, user, _ = _parse(url)
    if origin.encrypted:
        raise ValueError("a proxy that is reached by TLS")
    if user is None:
        return Proxy(origin, b"")
    name, _, password = user.partition(":")
    return Proxy(origin, b"Basic " + base64.b64encode(unquote_to_bytes(name) + b":" + unquote_to_bytes(password)))


def _parse(url: str) -> tuple[Origin, str | None, str]:
    found = _URL.fullmatch(url)
    if found is None or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("no URL that can be sent")
    scheme, place, path, query = found.groups()
    parts = _AUTHORITY.fullmatch(place)
    if parts is None:
        raise ValueError("no host")
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme.lower()]
    if not 0 < port < 2**16:
        raise ValueError("no port")
    host = (parts["v6"] or parts["name"]).lower()
    if parts["v6"] or _ENDS_IN_A_NUMBER.search(host):
        ip_address(host)  # the system's resolver takes 127.1 and 0x7f000001 for addresses: nobody else does
    return Origin(scheme.lower() == "https", host, port), parts["user"], (path or "/") + (query or "")


@cache
def trust(ca_file: str) -> ssl.SSLContext:
    """The system's authorities and those of a file; cached, since reading them takes tens of milliseconds.

    Raises:
        OSError: the file can't be read or holds no certificates.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


def check_literal(origin: Origin, access: Access) -> None:
    """Raises PrivateAddress for a URL that itself holds a private address, where these are not allowed."""
    if not access.private and not is_public(origin.host, unless_a_name=True):
        raise PrivateAddress


async def resolve(origin: Origin) -> Sequence[Address]:
    """Its addresses, in the system's order of preference. Raises OSError."""
    host, port = origin.host, origin.port
    try:
        literal = ip_address(host)
    except ValueError:
        loop = get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return cast(Sequence[Address], found)
    if isinstance(literal, IPv4Address):
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
    scope = socket.if_nametoindex(literal.scope_id) if literal.scope_id else 0
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(literal), port, 0, scope))]


async def connect(protocol: asyncio.Protocol, origin: Origin, access: Access, addresses: Sequence[Address]) -> None:
    """Connects `protocol` to a server. Its `connection_made` is called when requests may be sent.

    Args:
        addresses: of the proxy, if there is one, otherwise of the server.

    Raises:
        OSError, RuntimeError: there is no connection; `reason` says why. Nothing is left of it.
    """
    proxy = parse_proxy(access.proxy)
    context = trust(access.ca_file) if origin.encrypted else None
    try:
        # The proxy is the operator's own: its address may be private.
        transport = await _open(addresses, private=access.private or proxy is not None)
    except OSError as error:
        raise ProxyUnreachable(error.errno, "") if proxy is not None else error from None
    try:
        if context is not None:
            if proxy is not None:
                await _tunnel(transport, origin, proxy)
            transport = await _encrypted(transport, protocol, context, origin, access.timeouts.connect_s)
        elif transport.is_closing():
            raise ConnectionResetError
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
    except BaseException:
        transport.abort()
        raise


async def _encrypted(
    transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, origin: Origin, limit_s: float
) -> asyncio.Transport:
    made = await get_running_loop().start_tls(
        transport, protocol, context, server_hostname=origin.host.rstrip("."), ssl_handshake_timeout=limit_s
    )
    if made is None:  # closed as soon as the handshake was complete
        raise ConnectionResetError
    return made


class _Silent(asyncio.Protocol):
    """Of a connection that is not used yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, _: bytes) -> None:
        self._transport.abort()  # a server has nothing to say before it is asked


async def _open(addresses: Sequence[Address], *, private: bool) -> asyncio.Transport:
    """A connection to one of `addresses`. Several are tried side by side, each a little later than the one before
    (RFC 8305).

    Args:
        private: whether addresses that are not globally routed may be connected to.

    Raises:
        PrivateAddress: none of them may be connected to.
        OSError: none of them could be.
    """
    allowed = [one for one in addresses if private or is_public(str(one[4][0]))]
    if not allowed:
        raise PrivateAddress
    if len(allowed) == 1:
        return await _open_one(allowed[0])
    waiting = _interleaved(allowed)
    tries: set[asyncio.Task[asyncio.Transport]] = set()
    error: BaseException | None = None
    try:
        while waiting or tries:
            if waiting:
                tries.add(asyncio.ensure_future(_open_one(waiting.pop(0))))
            limit_s = _NEXT_ADDRESS_AFTER_S if waiting else None
            done, tries = await asyncio.wait(tries, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            while done:
                one = done.pop()
                if (error := one.exception()) is None:
                    tries |= done
                    return one.result()
    finally:
        for one in tries:
            one.add_done_callback(_drop)
            one.cancel()
        if tries:
            await asyncio.wait(tries)
    raise cast(BaseException, error)


async def _open_one(address: Address) -> asyncio.Transport:
    host, port = address[4][:2]
    transport, _ = await get_running_loop().create_connection(_Silent, host, port, family=address[0])
    if not spare_for_upstream(transport.get_extra_info("socket").fileno()):
        transport.abort()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return transport


def _drop(one: asyncio.Task[asyncio.Transport]) -> None:
    """Another address was sooner."""
    if not one.cancelled() and one.exception() is None:
        one.result().abort()


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """RFC 8305, section 4: the families alternate, beginning with the one that the system prefers."""
    first = [one for one in addresses if one[0] == addresses[0][0]]
    others = [one for one in addresses if one[0] != addresses[0][0]]
    mixed: list[Address] = []
    for index in range(max(len(first), len(others))):
        mixed += first[index : index + 1] + others[index : index + 1]
    return mixed


async def _tunnel(transport: asyncio.Transport, origin: Origin, proxy: Proxy) -> None:
    """Asks a proxy for a connection to a server (`CONNECT`, RFC 9110, section 9.3.6). Raises ProxyRefused, or OSError
    where the connection ends."""
    place = origin.authority.encode()
    credentials = b"proxy-authorization: %b\r\n" % proxy.authorization if proxy.authorization else b""
    asking = _Tunnel()
    transport.set_protocol(asking)
    transport.write(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (place, place, USER_AGENT, credentials))
    status = await asking.answer
    if not 200 <= status < 300:
        raise ProxyRefused(status)


class _Tunnel(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = ResponseParser()
        self._parser.expect(no_body=True)
        self.answer: asyncio.Future[int] = get_running_loop().create_future()
        """The status; 0 for what is not HTTP."""

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
        except MalformedResponse:
            self._answered(0)
        else:
            if self._parser.state is State.DONE:
                # Before our handshake, the server behind the tunnel has nothing to say.
                self._answered(0 if self._parser.excess and self._parser.status < 300 else self._parser.status)

    def connection_lost(self, error: Exception | None) -> None:
        self._parser.close()
        if not self.answer.done():
            self.answer.set_exception(error if isinstance(error, OSError) else ConnectionResetError())
            self.answer.exception()  # whoever waited may have left

    def _answered(self, status: int) -> None:
        if not self.answer.done():
            self.answer.set_result(status)


def reason(error: Exception) -> str:
    """Why there is no connection, for a message."""
    match error:
        case PrivateAddress():
            return "its address is private, and `private = true` in its table is not set"
        case ssl.SSLCertVerificationError():
            said = getattr(error, "verify_message", "unknown reason")
            return f"its certificate is not to be trusted: {said.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {getattr(error, 'reason', None) or 'unknown reason'}"
        case socket.gaierror():
            return "its name, or its proxy's, can't be resolved"
        case ProxyRefused(status=0):
            return "the proxy's answer is not valid HTTP"
        case ProxyRefused():
            return f"the proxy answered {error.status} when asked for a connection"
        case ValueError():
            return "its address or a header, as configured, can't be sent"
        case OSError():
            at = "the proxy: " if isinstance(error, ProxyUnreachable) else ""
            return at + (os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "no connection")
    return "no connection"
