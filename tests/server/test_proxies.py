"""Behind a proxy that keeps its connections to the server, nobody gets what another asked for."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.server.framing import CHUNKED, GOOD, H2C, SMUGGLED, WEBSOCKET, chunked, post, replies, sized
from tests.server.proxies import proxy
from tests.server.running import WAIT_S, Running

ATTACKS = 200
VICTIMS = 2
PAUSE_S = 0.01
"""Between the head and the body, so that the reply may come first."""

FILLER = b"a" * 90_000
"""With it a body is read in several pieces, though the proxy sends it at once; it is within the server's bound."""


def attacks(key: str) -> list[list[bytes]]:
    """Requests without a key, in pieces. Their bodies hold requests: one that is answered at once, and one with the
    attacker's own key that is answered when the connection may be a victim's already."""
    body = GOOD.replace(b'"go"', b'"late 0.03"')
    slow = post(sized(body), body=body).replace(b"KEY", key.encode())
    slow += b" " * (len(slow) % 2)
    contents = [SMUGGLED, slow]
    contents += [b"\nupgrade:" * (len(inner) // 2) + inner for inner in contents]
    contents += [FILLER + content for content in contents]
    made = [
        pieces
        for path in (b"/v4/beta/completions", b"/none", b"/healthz")
        for lines in ((), H2C, WEBSOCKET)
        for content in contents
        for framing, body in ((sized(content), content), (CHUNKED, chunked(content)))
        for head in [post(*lines, framing, path=path, key=b"")]
        for pieces in ([head, body], [head + body])
    ]
    random.Random(0).shuffle(made)
    return made[:ATTACKS]


@pytest.fixture(params=["nginx", "caddy"])
def port(request: pytest.FixtureRequest, scripted: Running) -> Iterator[int]:
    with proxy(request.param, scripted.port) as listening:
        yield listening


@dataclass
class Victim:
    """Asks for as many tokens as nobody else does, again and again, and keeps what it got instead."""

    port: int
    key: str
    tokens: int
    stop: threading.Event
    asked: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        expected = "".join(f" {number}" for number in range(1, self.tokens + 1))
        body = GOOD.replace(b'"max_tokens": 2', b'"max_tokens": %d' % self.tokens)
        request = post(sized(body), body=body).replace(b"KEY", self.key.encode())
        with socket.create_connection(("127.0.0.1", self.port), WAIT_S) as client:
            while not self.stop.is_set():
                client.sendall(request)
                received = b""
                while not (got := replies(received)):
                    data = client.recv(65536)
                    if not data:
                        self.wrong.append(f"the connection ended: {received!r}")
                        return
                    received += data
                self.asked += 1
                if len(got) != 1 or got[0].status != 200 or f'"text":"{expected}"'.encode() not in got[0].body:
                    self.wrong.append(received.decode())


def attack(port: int, pieces: list[bytes]) -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(PAUSE_S)
        client.settimeout(PAUSE_S)
        client.recv(65536)


def test_an_attacker_without_a_key_crosses_no_replies(scripted: Running, port: int) -> None:
    stop = threading.Event()
    victims = [Victim(port, scripted.key, tokens, stop) for tokens in range(3, 3 + VICTIMS)]
    threads = [threading.Thread(target=victim.run) for victim in victims]
    for thread in threads:
        thread.start()
    made = attacks(scripted.key)
    assert len(made) == ATTACKS
    for pieces in made:
        attack(port, pieces)
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert [victim.wrong for victim in victims] == [[]] * VICTIMS
    assert all(victim.asked > ATTACKS // 10 for victim in victims)
    assert not any("smuggled" in line for line in scripted.log.splitlines())


def test_an_upgrade_through_a_proxy_is_answered(scripted: Running, port: int) -> None:
    for lines in (H2C, WEBSOCKET):
        request = post(*lines, b"connection: close", sized(GOOD), body=GOOD).replace(b"KEY", scripted.key.encode())
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
            client.sendall(request)
            received = b""
            while not (got := replies(received)):
                received += client.recv(65536)
        assert b'" 1 2"' in got[0].body
