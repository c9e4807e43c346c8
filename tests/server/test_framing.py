"""Where a request ends and the next begins: the same for every way to cut its bytes, and for every reply."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from itertools import pairwise

import pytest

from tests.server.framing import CASES, CLOSES, KEEPS, LAST, SPLIT_ANYWHERE, Case, replies
from tests.server.running import Running, read_all

PAUSE_S = 0.03
"""Enough for the server to read what was sent, mostly; where it is not, a case is the easier one."""


def keyed(case: Case, server: Running) -> list[bytes]:
    """Its pieces, in which the key is as long as `KEY` stands for nothing in a body's length."""
    return [piece.replace(b"KEY", server.key.encode()) for piece in case.pieces]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_gets_its_reply_and_no_other_is_seen(scripted: Running, case: Case) -> None:
    first, *others = keyed(case, scripted)
    received = b""
    with scripted.connect() as client:
        client.sendall(first)
        for piece in others:
            time.sleep(PAUSE_S)
            with suppress(ConnectionError):
                client.sendall(piece)
        if case.end == KEEPS:
            while len(replies(received)) < len(case.replies):
                data = client.recv(65536)
                assert data, f"the connection ended: {received!r}"
                received += data
            client.sendall(LAST)
        received += read_all(client)
    expected = case.replies if case.end == CLOSES else (*case.replies, 200)
    got = replies(received)
    assert tuple(reply.status for reply in got) == expected
    assert got[-1].headers.get(b"connection") == b"close"
    assert all(b"connection" not in reply.headers for reply in got[:-1])


@pytest.mark.parametrize("case", SPLIT_ANYWHERE, ids=lambda case: case.name)
def test_it_is_the_same_wherever_the_bytes_are_split(scripted: Running, case: Case) -> None:
    (request,) = keyed(case, scripted)
    got: dict[int, tuple[int, ...]] = {}
    batches = [*range(1, len(request), 60), len(request)]
    for start, end in pairwise(batches):
        with ExitStack() as stack:
            clients = {at: stack.enter_context(scripted.connect()) for at in range(start, end)}
            for at, client in clients.items():
                client.sendall(request[:at])
            time.sleep(PAUSE_S * 2)
            for at, client in clients.items():
                with suppress(ConnectionError):
                    client.sendall(request[at:])
            time.sleep(PAUSE_S * 2)
            for client in clients.values():
                with suppress(ConnectionError):
                    client.sendall(LAST)
            for at, client in clients.items():
                got[at] = tuple(reply.status for reply in replies(read_all(client)))
    kept, closed = (*case.replies, 200), case.replies
    allowed = {KEEPS: {kept}, CLOSES: {closed}}.get(case.end, {kept, closed})
    assert {at: statuses for at, statuses in got.items() if statuses not in allowed} == {}
    assert len(got) == len(request) - 1


def test_the_table_is_long_enough_and_names_are_unique() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(SPLIT_ANYWHERE) >= 10
