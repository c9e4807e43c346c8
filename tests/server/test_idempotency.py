"""`Idempotency-Key`: one work, one bill, and the same reply to all who ask, whatever becomes of them."""

from __future__ import annotations

import itertools
import json
import re
import signal
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from andthen.books.store import open_sqlite, open_store
from tests.posted import rows
from tests.postgres import own_database
from tests.server.running import COMPLETIONS, WAIT_S, Answer, Running, read_all, read_until, running
from tests.serving import Server, andthen, free_port, serving, start, wait_until_ready
from tests.upstream.vendor import STREAM, CutOff, Playing, Sent, Vendor, choice, completion, frame


def asked(server: Running, key: str, prompt: str = "go", **fields: Any) -> Answer:
    body = {"model": "local/count", "prompt": prompt, "max_tokens": 4} | fields
    return server.ask("POST", COMPLETIONS, body, idempotency_key=key)


def made(server: Running) -> int:
    """Tokens that the engine has generated."""
    return int(server.ask("POST", "/tokenize", {"prompt": "made"}).json["tokens"][0])


def counted(server: Running) -> float:
    """Tokens of completions on the page of metrics."""
    page = server.ask("GET", "/metrics").body.decode()
    return sum(map(float, re.findall(r'andthen_tokens_total\{[^}]*kind="completion"[^}]*\} (\S+)', page)))


def row_of(home: Path, request_id: str) -> dict[str, Any]:
    """The row of one request, once it is there."""
    for count in itertools.count(1):
        found = [row for row in rows(home, count) if row["id"] == request_id]
        if found:
            return found[0]
    raise AssertionError


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_gets_the_same_reply_and_is_worked_on_once(scripted: Running, stream: bool) -> None:
    before = made(scripted)
    first, second = (asked(scripted, f"same-{stream}", stream=stream) for _ in range(2))
    assert first.status == second.status == 200
    assert first.body == second.body
    assert made(scripted) == before + 4
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-request-id"] in first.body.decode()
    assert second.headers["x-andthen-plan"] == first.headers["x-andthen-plan"]
    assert row_of(scripted.home, first.headers["x-request-id"])["origin"] == "model"
    replay = row_of(scripted.home, second.headers["x-request-id"])
    assert (replay["origin"], replay["status"], replay["completion_tokens"], replay["model_asked"]) == (
        "replay", 200, 0, "local/count",
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_with_the_last_byte_has_the_whole_reply(scripted: Running, stream: bool) -> None:
    """A client knows a reply's end by its length, or by its last frame."""

    def ended(status: int) -> float:
        page = scripted.ask("GET", "/metrics").body.decode()
        found = re.search(rf'andthen_requests_total\{{route="completions",status="{status}"\}} (\S+)', page)
        return float(found[1]) if found else 0

    asked(scripted, f"leaving-{stream}", stream=stream)
    whole, left = ended(200), ended(499)
    for _ in range(5):
        with scripted.sent("go", f"idempotency-key: leaving-{stream}", max_tokens=4, stream=stream) as connection:
            read_until(connection, b"[DONE]" if stream else b'"total_tokens"')
    scripted.until(lambda: ended(200) + ended(499) == whole + left + 5, "five have left")
    assert ended(499) == left


def test_the_order_of_fields_makes_no_other_request(scripted: Running) -> None:
    bodies = (
        '{"model":"local/count","prompt":"go","max_tokens":2}',
        '{"max_tokens": 2, "prompt":"go", "model":"local/count"}',
    )
    first, second = (scripted.ask("POST", COMPLETIONS, body, idempotency_key="order") for body in bodies)
    assert first.body == second.body


@pytest.mark.parametrize("value", ["1e400", "9" * 5000, '{"b": 1, "a": [1e999]}'])
def test_what_nobody_reads_of_a_body_need_not_be_readable(scripted: Running, value: str) -> None:
    body = f'{{"model":"local/count","prompt":"go","max_tokens":2,"ignored":{value}}}'
    first, second = (scripted.ask("POST", COMPLETIONS, body, idempotency_key=f"odd {len(value)}") for _ in range(2))
    assert (first.status, first.body) == (200, second.body)


def test_another_body_is_refused(scripted: Running) -> None:
    assert asked(scripted, "twice").status == 200
    refused = asked(scripted, "twice", n=2)
    assert (refused.status, refused.code, refused.json["error"]["type"]) == (409, "idempotency_conflict", "conflict")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.json["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "ümlaut"])
def test_a_key_that_is_none_is_refused(scripted: Running, key: str) -> None:
    refused = asked(scripted, key)
    assert (refused.status, refused.json["error"]["param"]) == (400, "Idempotency-Key")


def test_of_one_api_key_and_of_no_other(scripted: Running) -> None:
    with closing(open_sqlite(scripted.home / "andthen.db")) as store:
        other = store.create_key("other-caller").secret
    body = {"model": "local/count", "prompt": "go", "max_tokens": 2}
    first = scripted.ask("POST", COMPLETIONS, body, idempotency_key="mine")
    second = scripted.ask("POST", COMPLETIONS, body, idempotency_key="mine", x_api_key=other)
    assert first.json["id"] != second.json["id"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_work_goes_on_when_its_client_leaves(scripted: Running, stream: bool) -> None:
    key, fields = f"left-{stream}", {"max_tokens": 5, "stream": stream}
    before = counted(scripted)
    with scripted.sent("slow", f"idempotency-key: {key}", **fields):
        scripted.until_jobs(1)
    reply = asked(scripted, key, "slow", **fields)
    assert reply.status == 200
    assert reply.headers["idempotent-replayed"] == "true"
    assert "".join(re.findall(r'"text":\s?"([^"]*)"', reply.body.decode())) == " 1 2 3 4 5"
    assert counted(scripted) == before + 5
    row = row_of(scripted.home, re.findall(r"cmpl-\w+", reply.body.decode())[0])
    assert (row["status"], row["ended_by"], row["completion_tokens"]) == (200, "reply", 5)


def test_a_stream_is_followed_from_its_first_frame_while_it_runs(scripted: Running) -> None:
    header, fields = "idempotency-key: followed", {"max_tokens": 12, "stream": True}
    with scripted.sent("slow", header, **fields) as first:
        begun = read_until(first, b'" 3"')
        with scripted.sent("slow", header, **fields) as second:
            also = read_until(second, b'" 3"')
            assert b'" 12"' not in also
            rest, their_rest = read_all_frames(first), read_all_frames(second)
    assert frames(begun + rest) == frames(also + their_rest)
    assert frames(begun + rest)[-1] == "[DONE]"


def read_all_frames(client: Any) -> bytes:
    return read_until(client, b"data: [DONE]\n\n")


def frames(received: bytes) -> list[str]:
    return re.findall(r"data: (.*)\n", received.decode())


def test_an_error_that_cost_nothing_is_not_kept(scripted: Running) -> None:
    for _ in range(2):
        refused = asked(scripted, "refused", "refuse")
        assert (refused.status, refused.code) == (503, "no_capacity")
        assert "idempotent-replayed" not in refused.headers
    assert asked(scripted, "invalid", temperature=9).status == 400
    assert asked(scripted, "invalid").status == 200


async def cut_off(sent: Sent) -> AsyncIterator[bytes]:
    """Two tokens that the vendor bills, and then nothing."""
    yield STREAM + frame(completion(choice("one"), usage=None)) + frame(completion(choice(" two"), usage=None))
    raise CutOff


@pytest.fixture(scope="module")
def before_a_vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Vendor]]:
    with closing(Playing(cut_off)) as playing:
        settings = f"""
[models."team/m"]
address = "http://127.0.0.1:{playing.port}/v1"
language = "openai_completions"
model = "m"
"""
        with running(tmp_path_factory.mktemp("vendor"), settings) as server:
            yield server, playing.vendor


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_was_billed_is_kept_and_told_again(before_a_vendor: tuple[Running, Vendor], stream: bool) -> None:
    server, vendor = before_a_vendor
    before = len(vendor.sent)
    bodies = []
    for _ in range(2):
        header = f"idempotency-key: broken-{stream}"
        with server.sent("go", header, "connection: close", model="team/m", stream=stream) as client:
            head, _, body = read_all(client).partition(b"\r\n\r\n")
            bodies.append(body)
            replayed = re.findall(r"x-request-id: (\S+)", head.decode())[0]
    assert bodies[0] == bodies[1]
    assert b'"upstream_garbled"' in bodies[0]
    assert b"[DONE]" not in bodies[0]
    assert len(vendor.sent) == before + 1
    replay = row_of(server.home, replayed)
    assert (replay["origin"], replay["status"], replay["ended_by"]) == (
        ("replay", 200, "reply") if stream else ("replay", 502, "error")
    )


def test_tokens_are_counted_once_for_who_leaves_while_the_reply_is_kept(tmp_path: Path) -> None:
    with running(tmp_path / "server") as server:
        with closing(sqlite3.connect(server.home / "andthen.db", isolation_level=None)) as raw:
            with server.sent("slow", "idempotency-key: kept", max_tokens=3):
                server.until_jobs(1)
                raw.execute("BEGIN IMMEDIATE")
                server.until_jobs(0)
            server.until(
                lambda: bool(server.events("request")) and server.events("request")[-1]["status"] == 499, "left"
            )
        server.until(lambda: [row["status"] for row in rows(server.home)] == [200], "settled")
        assert counted(server) == 3


def test_stopping_waits_for_work_without_a_client(tmp_path: Path) -> None:
    with running(tmp_path / "server") as server:
        with server.sent("slow", "idempotency-key: last", max_tokens=8):
            server.until_jobs(1)
        assert server.stop() == 0
        (row,) = rows(server.home)
        assert (row["status"], row["completion_tokens"]) == (200, 8)


def test_stopping_ends_what_takes_longer_than_the_drain(tmp_path: Path) -> None:
    with running(tmp_path / "server", "drain_s = 0.3") as server:
        with server.sent("slow", "idempotency-key: last", max_tokens=1000):
            server.until_jobs(1)
        assert server.stop() == 0
        (row,) = rows(server.home)
        assert (row["status"], row["code"]) == (503, "shutting_down")
        assert row["completion_tokens"] > 0


def test_stopping_bills_what_was_made_and_waits_to_be_kept(tmp_path: Path) -> None:
    with running(tmp_path / "server", "drain_s = 0.3") as server:
        with server.sent("slow", "idempotency-key: last", max_tokens=3):
            server.until_jobs(1)
        with closing(sqlite3.connect(server.home / "andthen.db", isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            server.until_jobs(0)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1)  # the drain is over, and the database takes nothing
        assert server.process.wait(WAIT_S) == 0
        (row,) = rows(server.home)
        assert (row["status"], row["completion_tokens"]) == (200, 3)


def test_replicas_share_the_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines on one PostgreSQL: the second follows what the first makes, and replays it."""
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    with own_database() as address:
        monkeypatch.setenv("ANDTHEN_BOOKS_DATABASE", address.render_as_string(hide_password=False))
        andthen("migrate", home=homes[0])
        with serving(homes[0]) as one:
            port = free_port()
            process = start(homes[1], port)
            try:
                two = replace(one, url=f"http://127.0.0.1:{port}", home=homes[1], process=process)
                wait_until_ready(two.url, process, homes[1])
                with ThreadPoolExecutor(8) as pool:
                    replies = list(pool.map(lambda n: long_once((one, two)[n % 2]), range(8)))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT_S)
        assert len(set(replies)) == 1
        with closing(open_store(address.render_as_string(hide_password=False))) as store:
            (row,) = store.usage(())
        assert (row.requests, row.failed) == (8, 0)
        assert row.completion_tokens == json.loads(replies[0])["usage"]["completion_tokens"]


def long_once(server: Server) -> bytes:
    body = json.dumps({"model": server.model, "prompt": "Once upon a time", "max_tokens": 300, "temperature": 1})
    headers = {"x-api-key": server.key, "content-type": "application/json", "idempotency-key": "shared"}
    request = urllib.request.Request(server.url + COMPLETIONS, body.encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
        return bytes(reply.read())
