"""The way to a server: certificates, proxies, and addresses that are not to be reached."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from andthen.contract.errors import UpstreamUnreachable
from andthen.http.client import HttpClient
from andthen.vendors.settings import Access
from andthen.wire.base import Call
from tests.http.peers import Peer, access, call, polite, proxying, serving


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    return certified(authority, "127.0.0.1")


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


def certified(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def ask(client: HttpClient, asked: Call, way: Access) -> bytes:
    async with client.perform(asked, way, "Peer") as reply:
        return b"".join([chunk async for chunk in reply.chunks()])


async def unreachable(client: HttpClient, asked: Call, way: Access) -> str:
    reply = client.perform(asked, way, "Peer")
    with pytest.raises(UpstreamUnreachable) as caught:
        async with reply:
            raise AssertionError
    assert not reply.reached
    return str(caught.value)


async def test_an_authority_of_the_operators_is_trusted(client: HttpClient, tls: ssl.SSLContext, ca_file: str) -> None:
    async with serving(polite, tls) as upstream:
        for _ in range(2):
            assert await ask(client, call(upstream), access(ca_file=ca_file)) == b"hello"
    assert upstream.accepted == 1


async def test_an_authority_that_nobody_named_is_not_trusted(client: HttpClient, tls: ssl.SSLContext) -> None:
    async with serving(polite, tls) as upstream:
        assert "certificate is not to be trusted" in await unreachable(client, call(upstream), access())
    assert upstream.requests == []


async def test_a_certificate_for_another_name_is_not_trusted(
    client: HttpClient, authority: trustme.CA, ca_file: str
) -> None:
    async with serving(polite, certified(authority, "elsewhere.example")) as upstream:
        told = await unreachable(client, call(upstream), access(ca_file=ca_file))
    assert "certificate is not to be trusted" in told


async def test_a_server_without_tls_is_unreachable_by_https(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.say(b"HTTP/1.1 400 Bad request\r\n\r\n")

    async with serving(script) as upstream:
        told = await unreachable(client, call(upstream.address.replace("http:", "https:")), access())
    assert "TLS failed" in told


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_file_without_certificates_is_unreachable(
    client: HttpClient, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    assert "can't be reached" in await unreachable(client, call("https://127.0.0.1"), access(ca_file=str(file)))


CREDENTIALS = "Basic " + base64.b64encode(b"us er:p@ss").decode()


@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
async def test_a_call_goes_through_the_proxy_with_its_credentials(
    client: HttpClient, tls: ssl.SSLContext, ca_file: str, encrypted: bool
) -> None:
    async with serving(polite, tls if encrypted else None) as upstream, proxying(credentials=CREDENTIALS) as proxy:
        way = access(proxy=proxy.address.replace("//", "//us%20er:p%40ss@"), ca_file=ca_file)
        for _ in range(2):
            assert await ask(client, call(upstream), way) == b"hello"
    assert proxy.accepted == 1
    assert proxy.requests[0].startswith(b"CONNECT " if encrypted else b"POST http://127.0.0.1")
    assert encrypted is (b"proxy-authorization" not in upstream.requests[0].lower())


async def test_a_proxy_that_refuses_is_unreachable(client: HttpClient, tls: ssl.SSLContext, ca_file: str) -> None:
    async with serving(polite, tls) as upstream, proxying(refuses=True) as proxy:
        told = await unreachable(client, call(upstream), access(proxy=proxy.address, ca_file=ca_file))
    assert "the proxy answered 407" in told


async def test_a_proxy_that_is_away_is_unreachable(client: HttpClient) -> None:
    async with serving(polite) as upstream, proxying() as proxy:
        pass
    assert "the proxy: connection refused" in await unreachable(client, call(upstream), access(proxy=proxy.address))


async def test_the_proxys_own_address_may_be_private(client: HttpClient) -> None:
    async with proxying(refuses=True) as proxy:
        async with client.perform(
            call("http://vendor.example"), access(proxy=proxy.address, private=False), "Peer"
        ) as reply:
            assert reply.status == 407
        told = await unreachable(client, call("http://10.0.0.1"), access(proxy=proxy.address, private=False))
    assert "address is private" in told


PRIVATE = """
127.0.0.1 127.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1
255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fc00::1 fd12:3456::1 ff02::1 fec0::1 ::ffff:127.0.0.1
::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: 2001:0:7f00:1:: ::127.0.0.1
2001:db8::1 100::1
""".split()
PUBLIC = "1.1.1.1 8.8.8.8 203.0.114.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::".split()


@pytest.fixture
def nothing_connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were let pass; a connection to each fails."""
    passed: list[str] = []
    create = socket.socket

    class Unconnected(create):  # type: ignore[valid-type, misc]
        def connect(self, address: Any) -> None:
            passed.append(address[0])
            raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "socket", Unconnected)
    return passed


def literal(address: str) -> Call:
    return call(f"http://[{address}]" if ":" in address else f"http://{address}")


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_addresses_are_refused(client: HttpClient, address: str) -> None:
    told = await unreachable(client, literal(address), access(private=False))
    assert "its address is private" in told
    assert address not in told


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Lets every name stand for `addresses`."""

    def answer(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("address", PRIVATE)
async def test_names_of_private_addresses_are_refused(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, nothing_connects: list[str], address: str
) -> None:
    named(monkeypatch, address)
    told = await unreachable(client, call("http://vendor.example"), access(private=False))
    assert "its address is private" in told
    assert nothing_connects == []


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("address", PUBLIC)
async def test_public_addresses_are_connected_to(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, nothing_connects: list[str], address: str
) -> None:
    named(monkeypatch, address)
    assert "refused" in await unreachable(client, call("http://vendor.example"), access(private=False))
    assert nothing_connects == [address]


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_of_mixed_answers_only_the_public_is_connected_to(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, nothing_connects: list[str]
) -> None:
    named(monkeypatch, "127.0.0.1", "1.1.1.1", "::1", "2606:4700::1111")
    await unreachable(client, call("http://vendor.example"), access(private=False))
    assert set(nothing_connects) == {"1.1.1.1", "2606:4700::1111"}


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_name_that_nobody_knows_is_unreachable(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "can't be resolved" in await unreachable(client, call("http://vendor.example"), access())


@pytest.mark.parametrize("private", [False, True])
async def test_a_private_address_is_reached_where_the_configuration_says_so(client: HttpClient, private: bool) -> None:
    async with serving(polite) as upstream:
        if private:
            assert await ask(client, call(upstream), access(private=True)) == b"hello"
        else:
            await unreachable(client, call(upstream), access(private=False))
    assert upstream.accepted == int(private)


TUNNELS = {
    "not HTTP": (b"220 mail.example ready\r\n\r\n", "the proxy's answer is not valid HTTP"),
    "101": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", "the proxy's answer is not valid HTTP"),
    "bytes behind the answer": (
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "the proxy's answer is not valid HTTP",
    ),
    "a length and a body": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "the proxy's answer is not valid HTTP",
    ),
    "a refusal with a body": (b"HTTP/1.1 403 No\r\ncontent-length: 5\r\n\r\nhello", "the proxy answered 403"),
    "a redirect": (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\n\r\n", "the proxy answered 302"),
    "nothing": (b"", "connection reset by peer|no connection"),
}


@pytest.mark.parametrize(("said", "told"), TUNNELS.values(), ids=TUNNELS)
async def test_a_proxy_that_opens_no_tunnel_is_unreachable(client: HttpClient, said: bytes, told: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)

    async with serving(script) as proxy:
        assert re.search(told, await unreachable(client, call("https://127.0.0.1:1"), access(proxy=proxy.address)))
    assert len(proxy.requests) == 1, "and nothing is sent through it"


@pytest.mark.parametrize(
    "opened",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 201 OK\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_a_tunnel_begins_behind_the_headers_whatever_they_say(
    client: HttpClient, tls: ssl.SSLContext, ca_file: str, opened: bytes
) -> None:
    async with serving(polite, tls) as upstream, proxying(opened=opened) as proxy:
        assert await ask(client, call(upstream), access(proxy=proxy.address, ca_file=ca_file)) == b"hello"


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", "1.2.3.4.5", "[::1"])
@pytest.mark.parametrize("proxied", [False, True])
async def test_addresses_in_other_notations_are_never_asked_for(client: HttpClient, host: str, proxied: bool) -> None:
    """The system's resolver would take them for addresses, behind a proxy unseen by us."""
    async with serving(polite) as proxy:
        way = access(private=False, proxy=proxy.address if proxied else "")
        assert "can't be reached" in await unreachable(client, call(f"http://{host}:{proxy.port}"), way)
    assert proxy.accepted == 0


async def test_an_address_that_does_not_answer_is_passed_by(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full, so it takes no connection and refuses none."""
    async with serving(polite) as upstream:
        with socket.socket() as deaf, socket.socket() as one, socket.socket() as two:
            deaf.bind(("127.0.0.2", upstream.port))
            deaf.listen(0)
            for waiting in (one, two):
                waiting.setblocking(False)
                waiting.connect_ex(deaf.getsockname())

            async def resolve(_: object) -> list[Any]:
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, upstream.port))
                    for address in ("127.0.0.2", "127.0.0.3", "127.0.0.1")
                ]

            monkeypatch.setattr("andthen.http.connection_pool.resolve", resolve)
            began = asyncio.get_running_loop().time()
            assert await ask(client, call(upstream.address.replace("127.0.0.1", "localhost")), access()) == b"hello"
            assert asyncio.get_running_loop().time() - began < 3
            await asyncio.sleep(0.01)
            assert len(client._connections) == 1
    assert len(asyncio.all_tasks()) == 1
